"""Videos that begin with a picture, over the wire: how it may be sent, what is made of it, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import av
import httpx2
import pytest
from openai import AsyncOpenAI
from PIL import Image

from omnimuse.core.request import Picture
from tests.checkpoints import wan
from tests.server.test_videos import run, run_with_client
from tests.server.video_rig import Rig, listening, rig
from tests.server.whole_server import WholeServer
from tests.unit.media.hostile import encoded

WIDE, TALL = encoded(Image.new("RGB", (96, 48), "teal"), "PNG"), encoded(Image.new("RGB", (30, 90), "navy"), "PNG")
ONE, TWO, BOTH, PERHAPS = (1, 1), (1, 2), (2, 2), (0, 1)
Parts = list[tuple[str, tuple[str | None, bytes]]]


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def text(name: str, value: str) -> tuple[str, tuple[None, bytes]]:
    return name, (None, value.encode())


def sizes(images: tuple[Picture, ...]) -> list[tuple[int, int]]:
    return [(image.width, image.height) for image in images]


def run_over_http(
    data: Path, act: Callable[[Rig, httpx2.AsyncClient], Awaitable[None]], pictures: tuple[int, int]
) -> None:
    async def inner(parts: Rig) -> None:
        async with listening(parts.app) as url, httpx2.AsyncClient(base_url=url, timeout=60) as client:
            await act(parts, client)

    run(data, inner, pictures=pictures)


def test_the_official_client_makes_a_video_from_a_picture_in_its_proportions(tmp_path: Path) -> None:
    async def act(parts: Rig, client: AsyncOpenAI) -> None:
        video = await client.videos.create_and_poll(prompt="a hill", input_reference=("hill.png", TALL))
        assert (video.status, video.size) == ("completed", "16x64")
        [request] = parts.workers.started
        assert sizes(request.images) == [(30, 90)]
        assert (request.params.width, request.params.height) == (16, 64)
        video = await client.videos.create_and_poll(prompt="a hill", size="64x32", input_reference=("hill.png", TALL))
        assert (video.status, video.size) == ("completed", "64x32")

    run_with_client(tmp_path, act, pictures=ONE)


@pytest.mark.parametrize(
    "reference",
    [{"input_reference": {"image_url": data_url(WIDE)}}, {"url": data_url(WIDE)}, {"url": [data_url(WIDE)]}],
)
def test_a_picture_may_come_in_json(tmp_path: Path, reference: dict[str, Any]) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/videos/sync", json={"prompt": "a hill", **reference})
        assert answer.status_code == 200, answer.content
        [request] = parts.workers.started
        assert sizes(request.images) == [(96, 48)]

    run_over_http(tmp_path, act, PERHAPS)


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize(
    "parts_of_form",
    [
        [("image[]", ("a", WIDE)), ("image[]", ("b", TALL))],
        [("input_reference[]", ("a", WIDE)), ("input_reference[]", ("b", TALL))],
        [("last_image", ("b", TALL)), ("input_reference", ("a", WIDE))],
        [("last_image", ("b", TALL)), ("image", ("a", WIDE))],
        [("last_image", ("b", TALL)), text("input_reference[image_url]", data_url(WIDE))],
        [text("last_image[image_url]", data_url(TALL)), ("input_reference", ("a", WIDE))],
        [text("last_image[image_url]", data_url(TALL)), text("url", data_url(WIDE))],
    ],
)
def test_the_first_frame_is_first_and_the_last_is_last_however_they_come(tmp_path: Path, parts_of_form: Parts) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/videos/sync", files=[text("prompt", "a hill"), *parts_of_form])
        assert answer.status_code == 200, answer.content
        [request] = parts.workers.started
        assert sizes(request.images) == [(96, 48), (30, 90)]

    run_over_http(tmp_path, act, TWO)


@pytest.mark.parametrize(
    ("pictures", "parts_of_form", "code", "param"),
    [
        (ONE, [], "missing_parameter", "input_reference"),
        (BOTH, [("image", ("a", WIDE))], "missing_parameter", "last_image"),
        (TWO, [("last_image", ("a", WIDE))], "missing_parameter", "input_reference"),
        (TWO, [("image", ("a", WIDE)), ("input_reference", ("b", TALL))], "conflicting_parameters", "input_reference"),
        (TWO, [("image", ("a", WIDE)), text("url", data_url(WIDE))], "conflicting_parameters", "url"),
        (ONE, [("image[]", ("a", WIDE))] * 2, "invalid_value", "image[1]"),
        (ONE, [("image", ("a", WIDE)), ("last_image", ("b", TALL))], "invalid_value", "last_image"),
        (ONE, [("input_reference", ("a", b"no picture"))], "invalid_image", "input_reference"),
        (ONE, [text("input_reference[image_url]", "data:image/png;base64,AAAA")], "invalid_image", "input_reference"),
        (ONE, [text("input_reference[image_url]", "http://127.0.0.1/x")], "url_not_allowed", "input_reference"),
        (ONE, [text("input_reference[file_id]", "file-1")], "invalid_value", "input_reference"),
        (ONE, [text("input_reference", "photo.png")], "invalid_value", "input_reference"),
        (ONE, [("image", ("a", WIDE)), text("strength", "0.5")], "unsupported_parameter", "strength"),
        ((0, 0), [("input_reference", ("a", WIDE))], "unsupported_parameter", "input_reference"),
        ((0, 0), [text("url", data_url(WIDE))], "unsupported_parameter", "url"),
        (ONE, [("image", ("a", WIDE)), ("mask", ("b", TALL))], "unsupported_parameter", "mask"),
    ],
)
def test_what_cannot_be_made_of_pictures_is_refused_with_the_reason(
    tmp_path: Path, pictures: tuple[int, int], parts_of_form: Parts, code: str, param: str
) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        for path in ("/v1/videos", "/v1/videos/sync"):
            answer = await client.post(path, files=[text("prompt", "a hill"), *parts_of_form])
            told = answer.json()["error"]
            assert (answer.status_code, told["code"], told["param"]) == (400, code, param), told
        assert parts.workers.started == []

    run_over_http(tmp_path, act, pictures)


def test_a_key_stands_for_the_picture_too(tmp_path: Path) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answers = [
            await client.post(
                "/v1/videos",
                files=[text("prompt", "a hill"), ("input_reference", ("a", content))],
                headers={"idempotency-key": "mine"},
            )
            for content in (WIDE, WIDE, TALL)
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 409]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        assert answers[1].headers["idempotent-replayed"] == "true"

    run_over_http(tmp_path, act, ONE)


def test_a_job_keeps_its_picture_over_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path, pace=60, pictures=ONE) as parts, listening(parts.app) as url:
            async with httpx2.AsyncClient(base_url=url) as client:
                files = [text("prompt", "a hill"), ("input_reference", ("a", TALL))]
                id_ = (await client.post("/v1/videos", files=files)).json()["id"]
        async with rig(tmp_path, pictures=ONE) as parts:
            job = await parts.jobs.get("", id_)
            assert job is not None
            assert (await parts.ended(job)).state == "completed"
            assert sizes(parts.workers.started[-1].images) == [(30, 90)]

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.costly
def test_a_server_as_operators_start_it_makes_a_video_from_a_picture(tmp_path: Path) -> None:
    model = wan.build(tmp_path / "tiny", "2.1-I2V")
    with WholeServer(tmp_path / "home", str(model), "--dtype", "float32", "--warm-up", "none") as server:
        url = server.url
        server.wait_ready()
        files = [text("prompt", "a hill"), ("input_reference", ("hill.png", WIDE))]
        chosen = [text(*each) for each in (("num_frames", "5"), ("num_inference_steps", "2"), ("height", "32"))]
        answer = httpx2.post(f"{url}/v1/videos/sync", files=[*files, *chosen], timeout=100)
        assert answer.status_code == 200, answer.content
    with av.open(io.BytesIO(answer.content)) as container:
        shown = list(container.decode(video=0))
    assert (len(shown), shown[0].width, shown[0].height) == (5, 64, 32)


def test_tries_with_pictures_are_counted_as_such(tmp_path: Path) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        for files in ([text("prompt", "a hill")], [text("prompt", "a hill"), ("image", ("a", TALL))]):
            assert (await client.post("/v1/videos/sync", files=files)).status_code == 200
        counted = parts.service.metrics.render()[0].decode()
        assert 'task="text-to-video"' in counted and 'task="image-to-video"' in counted

    run_over_http(tmp_path, act, PERHAPS)
