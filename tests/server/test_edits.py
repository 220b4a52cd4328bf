"""Pictures that come with a prompt: what is drawn from them, what is refused, and that none harms the server."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image

from omnimuse.cli.serve import add_options, run
from omnimuse.core.errors import ConfigError
from omnimuse.core.request import Region
from omnimuse.media.picture import pixels_of
from omnimuse.media.sandbox import Question, Sandbox
from omnimuse.server.http.uploads import Uploads
from omnimuse.server.options import ServeOptions
from tests.processes import wait_gone
from tests.server.bench import measured
from tests.server.picture_server import MODEL, Running, picture_server, shapes
from tests.server.whole_server import WholeServer
from tests.unit.media.boxes import HANGS, speaking
from tests.unit.media.hostile import BOMB, damaged, encoded, noise

PATH = "/v1/images/edits"
TEAL = encoded(Image.new("RGB", (96, 48), "teal"), "PNG")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with picture_server(tmp_path_factory.mktemp("data")) as running:
        yield running


def post(server: Running, *pictures: bytes, headers: dict[str, str] | None = None, **fields: str) -> httpx2.Response:
    files = [("image[]" if len(pictures) > 1 else "image", ("upload", picture)) for picture in pictures]
    parts = [(name, (None, text.encode())) for name, text in {"prompt": "a star", **fields}.items()]
    return httpx2.post(f"{server.url}{PATH}", files=[*files, *parts], headers=headers, timeout=60)


def opened(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def error(answer: httpx2.Response) -> tuple[int, str, str]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["param"]


def hole(width: int, height: int, kind: str = "PNG") -> bytes:
    """A mask of OpenAI's kind: clear on its right half, opaque and of any colour elsewhere."""
    mask = noise(width, height).convert("RGBA")
    mask.paste((9, 9, 9, 0), (width // 2, 0, width, height))
    return encoded(mask, kind)


def right_half(width: int, height: int) -> np.ndarray:
    shades = np.zeros((height, width, 3), np.uint8)
    shades[:, width // 2 :] = 255
    return shades


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_the_official_client_edits_a_picture(server: Running) -> None:
    picture = noise(64, 32)
    with server.client() as client:
        answer = client.images.edit(
            model=MODEL,
            image=encoded(picture, "PNG"),
            prompt="a star",
            n=2,
            output_format="jpeg",
            extra_body={"seed": 7, "strength": 0.3, "num_inference_steps": 10, "guidance_scale": 2},
        )
    assert answer.data is not None
    assert [item.model_extra["seed"] for item in answer.data] == [7, 8]  # type: ignore[index]
    assert [opened(item.b64_json).format for item in answer.data] == ["JPEG"] * 2
    assert (answer.size, answer.output_format) == ("176x96", "jpeg"), "the proportions of the picture"
    request = server.workers.started[-1]
    assert (request.prompt, request.params.strength, request.outputs) == ("a star", 0.3, 2)
    [given] = request.images
    assert np.array_equal(pixels_of(given), np.asarray(picture))


def test_the_official_client_s_mask_says_where_a_picture_is_drawn_anew(server: Running) -> None:
    with server.client() as client:
        client.images.edit(model=MODEL, image=TEAL, mask=hole(96, 48), prompt="a star")
    region = server.workers.started[-1].region
    assert region is not None and region.mask is not None
    assert np.array_equal(pixels_of(region.mask), right_half(96, 48))
    assert region.pad == (0, 0, 0, 0)


def test_a_mask_may_come_by_other_names_in_json_and_as_white_on_black(server: Running) -> None:
    white = encoded(Image.fromarray(right_half(96, 48)), "PNG")
    in_json = {
        "prompt": "a star",
        "image": {"image_url": f"data:image/png;base64,{base64.b64encode(TEAL).decode()}"},
        "mask": {"image_url": f"data:image/png;base64,{base64.b64encode(white).decode()}"},
    }
    files = [("image", ("a", TEAL)), ("mask_image", ("b", white)), ("prompt", (None, b"a star"))]
    for sent in ({"json": in_json}, {"files": files}):
        assert httpx2.post(f"{server.url}{PATH}", timeout=60, **sent).status_code == 200  # type: ignore[arg-type]
        region = server.workers.started[-1].region
        assert region is not None and region.mask is not None
        assert np.array_equal(pixels_of(region.mask), right_half(96, 48))


def test_a_picture_goes_on_beyond_its_edges_and_the_answer_has_the_proportions_of_all(server: Running) -> None:
    answer = post(server, TEAL, pad="0,24,0,24").json()
    assert answer["size"] == "128x128"
    request = server.workers.started[-1]
    assert (request.region, request.params.strength) == (Region(pad=(0, 24, 0, 24)), 1.0)


def test_a_mask_that_cannot_be_followed_is_refused_with_the_reason(server: Running) -> None:
    def sent(*masks: tuple[str, bytes], **fields: str) -> tuple[int, str, str]:
        files = [("image", ("a", TEAL)), *((name, ("m", mask)) for name, mask in masks)]
        parts = [(name, (None, text.encode())) for name, text in {"prompt": "a star", **fields}.items()]
        return error(httpx2.post(f"{server.url}{PATH}", files=[*files, *parts], timeout=60))

    before = len(server.workers.started)
    assert sent(("mask", hole(48, 96))) == (400, "invalid_value", "mask")
    assert sent(("mask_image", hole(48, 96))) == (400, "invalid_value", "mask_image")
    assert sent(("mask", hole(96, 48)), ("mask_image", hole(96, 48))) == (400, "conflicting_parameters", "mask_image")
    assert sent(("mask", b"no picture")) == (400, "invalid_image", "mask")
    assert sent(("mask", BOMB)) == (400, "image_too_large", "mask")
    assert sent(pad="0,49,0,0") == (400, "invalid_value", "pad")
    assert sent(pad="0,0,0,0") == (400, "invalid_value", "pad")
    assert sent(pad="wide") == (400, "invalid_value", "pad")
    assert len(server.workers.started) == before


def test_strength_and_size_have_defaults_that_can_be_chosen_otherwise(server: Running) -> None:
    assert post(server, TEAL).status_code == 200
    assert server.workers.started[-1].params.strength == 0.6
    answer = post(server, TEAL, size="64x64", strength="1").json()
    assert answer["size"] == "64x64"
    assert server.workers.started[-1].params.strength == 1.0
    assert server.workers.started[-1].skipped_steps == 0


def test_a_photograph_is_turned_upright_and_kept_no_larger_than_a_worker_can_use(server: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert post(server, encoded(Image.new("RGB", (3000, 2000), "teal"), "JPEG", exif=exif)).status_code == 200
    [given] = server.workers.started[-1].images
    assert given.width < given.height <= 1300
    assert given.width * given.height <= 1024**2


def test_the_official_client_streams_an_edit(server: Running) -> None:
    with server.client() as client:
        stream = client.images.edit(
            model=MODEL, image=TEAL, prompt="x", stream=True, partial_images=2, extra_body={"strength": 0.6}
        )
        seen = list(stream)
    assert [event.type for event in seen] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [event.model_extra["step"] for event in seen[:2]] == [2, 4]  # type: ignore[index]
    assert [event.model_extra["steps"] for event in seen[:2]] == [6, 6], "4 of 10 steps are left out"  # type: ignore[index]
    assert opened(seen[-1].b64_json).size == (176, 96)


def test_progress_of_an_edit_has_a_name_of_its_own(server: Running) -> None:
    text = post(server, TEAL, stream="true", progress="true").text
    names = {line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")}
    assert names == {"image_edit.progress", "image_edit.completed"}


@pytest.mark.parametrize("words", [(), ("--stream",)])
def test_a_bench_of_edits_shows_a_picture_with_every_prompt(server: Running, words: tuple[str, ...]) -> None:
    figures = measured(server.url, "--task", "edits", "--mix", "128x128@4", "--requests", "3", *words)
    assert (figures["ok"], figures["first_preview"]["count"]) == (3, 3 * len(words)), figures["messages"]
    assert figures["stages"]["denoise"]["count"] == 3


def test_an_edit_may_answer_with_links(server: Running) -> None:
    url = post(server, TEAL, response_format="url").json()["data"][0]["url"]
    assert Image.open(io.BytesIO(httpx2.get(url).content)).size == (176, 96)


def test_a_data_url_is_as_good_as_an_upload(server: Running) -> None:
    url = "data:image/png;base64," + base64.b64encode(TEAL).decode()
    assert post(server, url=url, seed="3").json()["data"] == post(server, TEAL, seed="3").json()["data"]
    assert server.workers.started[-1].images == server.workers.started[-2].images


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_background_edit_outlives_its_server_with_its_picture(tmp_path: Path) -> None:
    picture = noise(40, 40)
    with picture_server(tmp_path) as server:
        server.workers.pace = 0.2
        sent = [("image", ("a", encoded(picture, "PNG"))), ("mask", ("b", hole(40, 40)))]
        fields = {"prompt": "a star", "background": "true", "seed": "4", "pad": "0,0,8,0"}
        parts = [(name, (None, text.encode())) for name, text in fields.items()]
        job = httpx2.post(f"{server.url}{PATH}", files=[*sent, *parts], timeout=60).json()
        assert job["status"] in ("queued", "in_progress")
    assert b"iVBORw0KGgo" in (tmp_path / "jobs.sqlite").read_bytes()
    with picture_server(tmp_path) as server:
        url = f"{server.url}/v1/images/{job['id']}"
        end = time.monotonic() + 20
        while (done := httpx2.get(url).json())["status"] != "completed" and time.monotonic() < end:
            time.sleep(0.05)
        assert done["result"]["data"][0]["seed"] == 4
        [request] = server.workers.started
        assert np.array_equal(pixels_of(request.images[0]), np.asarray(picture))
        assert request.region is not None and request.region.mask is not None
        assert np.array_equal(pixels_of(request.region.mask), right_half(40, 40))
        assert request.region.pad == (0, 0, 8, 0)
        assert httpx2.delete(url).status_code == 200
    assert b"iVBORw0KGgo" not in (tmp_path / "jobs.sqlite").read_bytes(), "a deleted job takes its picture along"


def test_a_key_stands_for_one_edit_of_one_picture(server: Running) -> None:
    key = {"idempotency-key": "edit-1"}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(server, TEAL, headers=key), range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    other = post(server, encoded(Image.new("RGB", (96, 48), "red"), "PNG"), headers=key)
    assert error(other)[:2] == (409, "idempotency_conflict")


# -- refusals --------------------------------------------------------------------------------------------------------


def test_no_file_that_is_no_picture_reaches_a_worker_and_the_next_is_drawn(server: Running) -> None:
    before = len(server.workers.started)
    assert error(post(server, BOMB)) == (400, "image_too_large", "image")
    for name, file in damaged().items():
        answer = post(server, file)
        assert error(answer) == (400, "invalid_image", "image"), name
        assert answer.headers["x-should-retry"] == "false"
    assert len(server.workers.started) == before
    assert httpx2.get(f"{server.url}/livez").status_code == 200
    assert post(server, TEAL).status_code == 200


@pytest.mark.costly(turns=3)
def test_a_decoder_that_hangs_is_the_picture_s_fault_and_others_are_served_meanwhile(tmp_path: Path) -> None:
    hangs = speaking(HANGS)
    with picture_server(tmp_path, uploads=lambda: Uploads(sandbox=Sandbox(seconds=5, command=hangs))) as server:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, server, TEAL)
            time.sleep(0.5)
            drawn = httpx2.post(f"{server.url}/v1/images/generations", json={"prompt": "x"})
            assert drawn.status_code == 200 and not first.done()
            assert error(first.result()) == (400, "invalid_image", "image")


class Noting(Sandbox):
    """Notes whose turn each question is."""

    def __init__(self) -> None:
        super().__init__()
        self.tenants: list[str] = []

    async def ask(self, question: Question, tenant: str = "") -> bytes:
        self.tenants.append(tenant)
        return await super().ask(question, tenant)


def test_each_key_has_its_own_turns_at_the_decoders(tmp_path: Path) -> None:
    keys, boxes = {name: name[0] * 40 for name in ("alice", "bob")}, list[Noting]()
    path = tmp_path / "keys"
    path.write_text("".join(f"{name}:{key}\n" for name, key in keys.items()))
    path.chmod(0o600)

    def uploads() -> Uploads:
        boxes.append(Noting())
        return Uploads(sandbox=boxes[0])

    with picture_server(tmp_path, change=lambda options: replace(options, key_file=path), uploads=uploads) as server:
        for key in keys.values():
            assert post(server, TEAL, headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert len(set(boxes[0].tenants)) == 2 == len(boxes[0].tenants) and "" not in boxes[0].tenants


def test_what_the_decoders_lack_is_logged_and_does_not_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    said = json.dumps({"lacking": {"a filter of system calls": "no such thing"}})

    async def tell(*command: str) -> None:
        uploads = Uploads(sandbox=Sandbox(command=command))
        await uploads.tell_lacking()
        await uploads.close()

    asyncio.run(tell(sys.executable, "-c", f"print({said!r})"))
    asyncio.run(tell("/nowhere/python"))
    assert [record.getMessage() for record in caplog.records if record.name == "omnimuse.server.http.uploads"] == [
        "the processes that read pictures run without a filter of system calls: no such thing",
        "no process to read pictures can be started now (the server cannot start another process now; try again later)",
    ]


def test_what_an_edit_cannot_honour_is_refused_with_the_reason(server: Running) -> None:
    before = len(server.workers.started)
    with server.client() as client:
        for extra, param, said in (
            ({"input_fidelity": "high"}, "input_fidelity", "strength"),
            ({"background": "transparent"}, "background", "opaque"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.images.edit(model=MODEL, prompt="x", image=TEAL, **extra)  # type: ignore[call-overload]
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)
            assert said in caught.value.message
        with pytest.raises(openai.BadRequestError) as many:
            client.images.edit(model=MODEL, prompt="x", image=[TEAL, TEAL])
    assert (many.value.code, many.value.param) == ("invalid_value", "image[1]")
    assert "at most 1" in many.value.message
    assert error(post(server)) == (400, "missing_parameter", "image")
    assert error(post(server, TEAL, strength="0")) == (400, "invalid_value", "strength")
    assert error(post(server, TEAL, strength="1.5")) == (400, "invalid_value", "strength")
    assert error(post(server, TEAL, n="20")) == (400, "invalid_value", "n")
    assert error(post(server, TEAL, size="100x100")) == (400, "invalid_value", "size")
    assert error(post(server, TEAL, model="other")) == (404, "model_not_found", "model")
    assert error(post(server, image="a.png")) == (400, "invalid_value", "image")
    assert len(server.workers.started) == before


def test_a_model_that_works_from_text_only_refuses_edits_with_the_reason(tmp_path: Path) -> None:
    door = shapes()
    blind = replace(door, spec=replace(door.spec, tasks=("text-to-image",)), limits=replace(door.limits, max_images=0))
    with picture_server(tmp_path, door=blind) as server:
        answer = post(server, BOMB)
    assert error(answer) == (404, "not_found", None)
    assert "it is for image-to-image; omnimuse/shapes does text-to-image" in answer.json()["error"]["message"]


def test_a_full_queue_is_told_before_a_picture_is_decoded(tmp_path: Path) -> None:
    with picture_server(tmp_path, change=lambda options: replace(options, max_queue=1)) as server:
        server.workers.pace = 0.2
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, server, TEAL)
            while not server.workers.running:
                time.sleep(0.02)
            refused = post(server, BOMB)
            assert refused.json()["error"]["code"] == "queue_full"
            assert "retry-after" in refused.headers
            assert first.result().status_code == 200


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://169.254.169.254/", "file:///etc/passwd", "x", ""])
def test_addresses_are_not_fetched(server: Running, url: str) -> None:
    if url:
        assert error(post(server, url=url)) == (400, "url_not_allowed", "url")
    assert error(post(server, **{"url[]": url})) == (400, "url_not_allowed", "url")


def test_a_host_that_is_allowed_must_still_be_on_the_open_internet(tmp_path: Path) -> None:
    hosts = ("localhost", "127.0.0.1:8000")
    with picture_server(tmp_path, change=lambda options: replace(options, fetch_hosts=hosts)) as server:
        for url in ("http://localhost/a.png", "https://localhost/a.png", "http://127.0.0.1:8000/a.png"):
            answer = post(server, url=url)
            assert error(answer) == (400, "url_not_allowed", "url")
            assert "open internet" in answer.json()["error"]["message"]


def test_hosts_to_fetch_from_are_checked_when_the_server_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--fetch-host"):
        ServeOptions(tmp_path, MODEL, fetch_hosts=("https://example.com/",))


def test_fetching_needs_both_to_be_allowed_and_a_host() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    for given in (["--allow-url-fetch"], ["--fetch-host", "example.com"]):
        with pytest.raises(ConfigError, match="go together"):
            run(parser.parse_args(given))


# -- a real worker ---------------------------------------------------------------------------------------------------


@pytest.mark.costly(turns=3)
def test_a_real_worker_keeps_what_strength_leaves_of_the_picture(tmp_path: Path) -> None:
    def pixels(text: str | None) -> np.ndarray:
        return np.asarray(opened(text).convert("RGB"), dtype=float)

    with WholeServer(tmp_path) as server:
        server.wait_ready()
        drawn = server.draw(prompt="a red circle on a blue background", seed=1).json["data"][0]["b64_json"]
        near: dict[float, Any] = {}
        with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            for strength in (0.1, 1.0):
                answer = client.images.edit(
                    model=MODEL,
                    image=base64.b64decode(drawn),
                    prompt="a green star on a yellow background",
                    extra_body={"seed": 2, "strength": strength},
                )
                assert answer.data is not None
                near[strength] = float(np.abs(pixels(answer.data[0].b64_json) - pixels(drawn)).mean())
            stream = client.images.edit(
                model=MODEL, image=base64.b64decode(drawn), prompt="a green star", stream=True, partial_images=3
            )
            seen = list(stream)
        assert near[0.1] < 12 < 40 < near[1.0], near
        assert [event.type for event in seen] == ["image_edit.partial_image"] * 3 + ["image_edit.completed"]
        job = json.loads(
            httpx2.post(
                server.url + PATH,
                files={"image": base64.b64decode(drawn), "prompt": (None, b"a star"), "background": (None, b"true")},
            ).text
        )
        end = time.monotonic() + 60
        while server.ask(f"/v1/images/{job['id']}").json["status"] != "completed":
            assert time.monotonic() < end
            time.sleep(0.1)
        children = server.workers()
        assert len(children) == 2, "the worker, and a child that is ready to read the next picture"
        assert server.end() == 0
        assert wait_gone(children)
