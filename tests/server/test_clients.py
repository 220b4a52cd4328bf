"""Clients as they are: what programs made for other servers send, and where they look for what comes back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from PIL import Image

from omnimuse.core.config import Config, ModelConfig
from omnimuse.deploy.wire import Remarks
from omnimuse.loader.identity import Taught
from omnimuse.media.picture import pixels_of
from omnimuse.server.options import Clients
from omnimuse.server.routes.absent import ABSENT
from omnimuse.server.routes.adapters import ELSEWHERE
from omnimuse.worker.find import find
from omnimuse.worker.pace import Shared
from tests.server.asgi import call, scope
from tests.server.picture_server import MODEL, Running, picture_server, service_in, shapes
from tests.server.video_rig import door as films
from tests.server.whole_server import WholeServer
from tests.unit.media.hostile import encoded, noise

IMAGES, EDITS, FORM = "/v1/images/generations", "/v1/images/edits", "application/x-www-form-urlencoded"
TEAL = encoded(Image.new("RGB", (96, 48), "teal"), "PNG")
URL = f"data:image/png;base64,{base64.b64encode(TEAL).decode()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    names = Clients(names=("gpt-image-1", "dall-e-3"))
    with picture_server(
        tmp_path_factory.mktemp("data"), change=lambda options: replace(options, clients=names)
    ) as running:
        yield running


def post(server: Running, path: str = IMAGES, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}{path}", json={"prompt": "a star", **fields}, headers=headers, timeout=60)


def form(server: Running, path: str, **fields: Any) -> httpx2.Response:
    content = urlencode({"prompt": "a star & more", **fields}, doseq=True)
    return httpx2.post(f"{server.url}{path}", content=content, headers={"content-type": FORM}, timeout=60)


def error(answer: httpx2.Response) -> tuple[int, str, str]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["param"]


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_an_edit_may_come_as_json_or_as_a_form_without_parts(server: Running) -> None:
    uploads = [("image", ("a.png", TEAL)), ("prompt", (None, b"a star & more")), ("seed", (None, b"3"))]
    expected = httpx2.post(f"{server.url}{EDITS}", files=uploads, timeout=60).json()["data"]
    for answer in (
        post(server, EDITS, prompt="a star & more", image=URL, seed=3),
        post(server, EDITS, prompt="a star & more", images=[{"image_url": URL}], seed=3),
        form(server, EDITS, image=URL, seed="3"),
        form(server, EDITS, **{"image[]": [URL], "seed": 3}),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"] == expected
        request = server.workers.started[-1]
        assert request.prompt == "a star & more" and (pixels_of(request.images[0]) == (0, 128, 128)).all()


def test_a_large_picture_in_json_is_no_larger_than_one_that_is_uploaded(server: Running) -> None:
    large = base64.b64encode(encoded(noise(1200, 1000), "PNG")).decode()
    assert len(large) > 3 * 2**20
    answer = post(server, EDITS, image=f"data:image/png;base64,{large}")
    assert answer.status_code == 200, answer.text


def test_json_of_a_video_has_room_for_its_first_frame(tmp_path: Path) -> None:
    body = {"prompt": "a hill", "input_reference": {"image_url": "data:image/png;base64," + "A" * (3 * 2**20)}}

    async def main() -> None:
        async with service_in(tmp_path, door=films()) as (app, _):
            head = {"content-type": "application/json"}
            answer = await call(app, scope("POST", "/v1/videos", head), [json.dumps(body).encode()])
            assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter"), "read, and no use here"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"prompt=%ff", "invalid_form", "UTF-8"),
        (b"prompt=" + "ä".encode(), "invalid_form", "UTF-8"),
        (b"prompt=a&prompt=b", "conflicting_parameters", "twice"),
        (b"a&" * 70, "invalid_form", "64 fields"),
        (b"prompt=" + b"x" * 300_000, "invalid_value", "262144"),
        (b"[]=x", "invalid_form", "name[]"),
        (b"prompt=x&sed=1", "unknown_parameter", "'seed'"),
        (b"", "missing_parameter", "prompt"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(server: Running, content: bytes, code: str, said: str) -> None:
    answer = httpx2.post(f"{server.url}{EDITS}", content=content, headers={"content-type": FORM}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert said in answer.json()["error"]["message"]


def test_a_form_without_parts_has_no_room_for_more_than_json(server: Running) -> None:
    answer = httpx2.post(
        f"{server.url}{EDITS}", content=b"prompt=" + b"x" * (3 * 2**20), headers={"content-type": FORM}, timeout=30
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_what_pictures_are_said_to_be_where_there_are_none_is_refused(server: Running) -> None:
    for image in ("a.png", 7, {"file_id": "x"}, [URL, 7]):
        assert error(post(server, EDITS, image=image)) == (400, "invalid_value", "image")
    assert error(post(server, EDITS, image="file:///etc/passwd")) == (400, "url_not_allowed", "image")
    assert error(post(server, EDITS, image=[URL, URL])) == (400, "invalid_value", "image[1]")
    assert error(post(server, EDITS)) == (400, "missing_parameter", "image")


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_model_may_have_several_names_and_none_means_the_first(server: Running) -> None:
    listed = httpx2.get(f"{server.url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [MODEL, "gpt-image-1", "dall-e-3"]
    assert httpx2.get(f"{server.url}/v1/models/dall-e-3").json()["id"] == "dall-e-3"
    for name in ("gpt-image-1", "", "default", None):
        assert post(server, model=name).status_code == 200, name
    refused = post(server, model="gpt-image-2")
    assert error(refused) == (404, "model_not_found", "model") and "dall-e-3" in refused.text


def test_the_list_of_models_tells_what_clients_of_sglang_ask_for(server: Running) -> None:
    model = httpx2.get(f"{server.url}/v1/models").json()["data"][0]
    assert model["task_type"] == "T2I"
    assert model["dtypes"] == {"transformer": "float32", "text_encoder": "float32", "vae": "float32"}
    assert {"flow_shift", "scheduler"} <= set(model["capabilities"]["parameters"])


def test_the_load_tells_what_was_measured_of_outputs_that_are_drawn_together(server: Running) -> None:
    assert httpx2.get(f"{server.url}/load").json()["company"] == []
    server.workers.company = [Shared("transformer", 64, 2, 0.75)]
    try:
        told = httpx2.get(f"{server.url}/load").json()["company"]
    finally:
        server.workers.company = []
    assert told == [{"network": "transformer", "tokens": 64, "states": 2, "share": 0.75}]


@pytest.mark.parametrize("path", [path for path in ABSENT if ABSENT[path] != ELSEWHERE])  # on loopback these are there
def test_a_path_of_a_feature_that_is_absent_says_what_is_missing(server: Running, path: str) -> None:
    address = path.replace("{what}", "video_1")
    answer = httpx2.post(f"{server.url}{address}", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    here = "omnimuse/shapes does text-to-image (POST /v1/images/generations), image-to-image (POST /v1/images/edits)"
    assert ABSENT[path].format(instead=here) in answer.json()["error"]["message"]


MODELS = {
    "pictures": ("text-to-image", "image-to-image"),
    "pictures from text": ("text-to-image",),
    "pictures from pictures": ("image-to-image",),
    "videos": ("text-to-video", "image-to-video"),
    "videos from pictures": ("image-to-video",),
    "sounds": ("text-to-audio", "audio-to-audio"),
}
PATHS = {
    "/v1/images/generations": {"pictures", "pictures from text"},
    "/v1/images/edits": {"pictures", "pictures from pictures"},
    "/v1/images/{id}": {"pictures", "pictures from text", "pictures from pictures"},
    "/v1/chat/completions": {"pictures", "pictures from text", "pictures from pictures"},
    **{
        f"/v1/videos{rest}": {"videos", "videos from pictures"}
        for rest in ("", "/sync", "/{id}", "/{id}/content", "/{id}/events", "/{id}/cancel")
    },
    **{
        f"/v1/audio/{rest}": {"sounds"}
        for rest in (
            "generate",
            "generations",
            *(f"generations/{{id}}{more}" for more in ("", "/content", "/events", "/cancel")),
        )
    },
}
"""Every path of work, and the models that have it."""


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("POST", "/images/generations", 404, "did you mean /v1/images/generations?"),
        ("POST", "/v1/v1/chat/completions", 404, "did you mean /v1/chat/completions?"),
        ("POST", "/v1/images/edits/", 404, "did you mean /v1/images/edits?"),
        ("GET", "/v1/health", 404, "did you mean /health?"),
        ("GET", "/v1/pictures", 404, "the paths are listed at /openapi.json"),
        ("GET", "/v1/images/generations", 405, "it knows POST"),
        ("DELETE", "/v1/images/edits", 405, "it knows POST"),
        ("POST", "/v1/models", 405, "it knows GET"),
    ],
)
def test_a_path_that_was_nearly_right_and_a_wrong_method_are_told_what_is(
    server: Running, method: str, path: str, status: int, told: str
) -> None:
    answer = httpx2.request(method, f"{server.url}{path}")
    assert answer.status_code == status and told in answer.json()["error"]["message"]


def test_a_slash_behind_the_list_of_models_changes_nothing(server: Running) -> None:
    assert httpx2.get(f"{server.url}/v1/models/").json() == httpx2.get(f"{server.url}/v1/models").json()


@pytest.mark.parametrize("model", MODELS)
def test_a_path_is_there_if_the_model_does_what_it_is_for_and_else_says_what_the_model_does(
    tmp_path: Path, model: str
) -> None:
    door = films() if "videos" in model else shapes()
    pictures = 0 if "from text" in model else 1
    limits = replace(door.limits, max_images=pictures, min_images=int("from pictures" in model))
    door = replace(door, spec=replace(door.spec, tasks=MODELS[model]), limits=limits)

    async def main() -> None:
        async with service_in(tmp_path, door=door) as (app, _):
            described = json.loads((await call(app, scope(path="/openapi.json"))).content)["paths"]
            work = {
                path for path in described if path.startswith(("/v1/images", "/v1/videos", "/v1/audio", "/v1/chat"))
            }
            assert work == PATHS.keys()
            for path, methods in described.items():
                for method in methods:
                    asked = scope(method.upper(), path.replace("{id}", "x"), {"content-type": "application/json"})
                    answer = await call(app, asked, [b"{}"])
                    told = answer.content.decode()
                    if path not in PATHS or model in PATHS[path]:
                        assert "is not served" not in told, path
                        continue
                    assert (answer.status, answer.error["code"]) == (404, "not_found"), (method, path)
                    assert all(task in answer.error["message"].partition("does ")[2] for task in MODELS[model]), told

    asyncio.run(main())


# -- answers -----------------------------------------------------------------------------------------------------------


BLOCKS = {"net.blocks.0": 0.5, "net.blocks.1": 0.25}
STEPS, HELD = {"denoise": (0.5, 0.25)}, {"encode prompt": (5,), "denoise": (7, 8), "decode": (9,)}
WITHIN = {
    "block_timings": BLOCKS,
    "block_bytes": {"net.blocks.0": 9},
    "steps": {"denoise": [0.5, 0.25]},
    "bytes": {"encode_prompt": [5], "denoise": [7, 8], "decode": [9]},
}


def test_an_answer_has_what_clients_of_other_servers_read_in_it(server: Running) -> None:
    server.workers.remarks = Remarks(
        ("the prompt has 99 tokens",), 11, ((64, 48), (32, 32)), 0, BLOCKS, 2**26, {"net.blocks.0": 9}, STEPS, HELD
    )
    try:
        answer = post(server, seed=-1, n=2, style="natural", block_timings=True)
    finally:
        server.workers.remarks = Remarks()
    body = answer.json()
    assert body["id"] == server.workers.started[-1].id
    assert server.workers.started[-1].blocks and {name: body[name] for name in WITHIN} == WITHIN
    assert (body["peak_memory_mb"], body["needs_memory_mb"], body["inference_time_s"]) == (3.0, 64.0, 0.0)
    assert body["shown"] == ["64x48", "32x32"]
    assert body["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 11},
        "output_tokens": 128,
        "output_tokens_details": {"image_tokens": 128, "text_tokens": 0},
        "total_tokens": 139,
    }
    assert [image["seed"] for image in body["data"]] == [int(seed) for seed in answer.headers["x-seed"].split(",")]
    assert ["describe it in the prompt" in body["warnings"][0], body["warnings"][1]] == [
        True,
        "the prompt has 99 tokens",
    ]
    assert json.loads(answer.headers["x-warnings"]) == body["warnings"]
    assert not {"shown", "warnings", *WITHIN} & post(server).json().keys() and "x-warnings" not in post(server).headers


def test_a_stream_and_a_job_tell_the_same(server: Running) -> None:
    server.workers.remarks = Remarks(
        ("the prompt has 99 tokens",), 11, ((64, 48), (32, 32)), 0, BLOCKS, 2**26, {"net.blocks.0": 9}, STEPS, HELD
    )
    try:
        text = post(server, stream=True, n=2, generator_device="cuda").text
        job = post(server, background=True, generator_device="cuda").json()
        while job["status"] not in ("completed", "failed"):
            job = httpx2.get(f"{server.url}/v1/images/{job['id']}").json()
    finally:
        server.workers.remarks = Remarks()
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [event["usage"]["input_tokens"] for event in events] == [11, 0]
    assert {tuple(told["shown"]) for told in (*events, job["result"])} == {("64x48", "32x32")}
    assert [{name: told[name] for name in WITHIN} for told in (events[-1], job["result"])] == [WITHIN] * 2
    assert not WITHIN.keys() & events[0].keys(), "what all pictures took is told once"
    for told in (events[0]["warnings"], job["warnings"], job["result"]["warnings"]):
        assert "CPU" in told[0] and told[1:] == ["the prompt has 99 tokens"]
    assert set(job["stage_durations"]) == {"queue", "denoise"} and job["peak_memory_mb"] == 3.0
    assert [told["needs_memory_mb"] for told in (job, job["result"])] == [64.0] * 2
    assert job["result"]["id"] == job["id"] and job["result"]["usage"]["input_tokens"] == 11


def test_a_seed_of_64_bits_goes_through_a_job_and_its_file(server: Running) -> None:
    seed = 2**64 - 1
    job = post(server, background=True, seed=seed).json()
    while job["status"] not in ("completed", "failed"):
        job = httpx2.get(f"{server.url}/v1/images/{job['id']}").json()
    assert job["result"]["data"][0]["seed"] == server.workers.started[-1].seed(0) == seed


def test_pictures_may_be_the_answer_itself_and_several_are_a_zip(server: Running) -> None:
    one = post(server, response_format="file", seed=5, output_format="webp")
    assert (one.headers["content-type"], one.headers["x-seed"]) == ("image/webp", "5")
    assert 'filename="picture-5.webp"' in one.headers["content-disposition"]
    assert Image.open(io.BytesIO(one.content)).size == (128, 128)
    for headers in (None, {"idempotency-key": "zip"}, {"idempotency-key": "zip"}):
        several = post(server, headers=headers, response_format="file", seed=5, n=3)
        assert several.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == [f"picture-{i}-seed-{4 + i}.png" for i in (1, 2, 3)]
            for number, name in enumerate(archive.namelist()):
                colour = Image.open(io.BytesIO(archive.read(name))).getpixel((0, 0))
                assert colour == (5 + number, 0, 99)
    refused = post(server, response_format="file", block_timings=True).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", "block_timings")
    edit = post(server, EDITS, image=URL, response_format="file")
    assert Image.open(io.BytesIO(edit.content)).size == (176, 96)
    assert list(server.workers.spool.iterdir()) == []


# -- what the model knows ----------------------------------------------------------------------------------------------


def test_a_model_tells_what_it_learned_and_warns_of_what_it_did_not(tmp_path: Path) -> None:
    found = find(Config(ModelConfig(MODEL)))
    assert isinstance(found.taught, Taught)

    async def main() -> None:
        async with service_in(tmp_path, taught=found.taught) as (app, _):
            described = json.loads((await call(app, scope(path="/v1/models"))).content)["data"][0]["capabilities"]
            assert "circle" in described["draws"]["shapes"] and described["only_side"] == 128

            async def told(**fields: Any) -> list[str]:
                body = json.dumps({"num_inference_steps": 1, **fields}).encode()
                head = {"content-type": "application/json"}
                return json.loads((await call(app, scope("POST", IMAGES, head), [body])).content).get("warnings", [])

            assert await told(prompt="a red circle") == []
            [words, size] = await told(prompt="the Eiffel tower", size="64x64")
            assert "none of the words that this model knows" in words and "128x128 only" in size

    asyncio.run(main())


@pytest.mark.costly(turns=3)
def test_a_real_server_counts_tokens_tells_what_was_cut_and_takes_a_schedule_and_a_step_cache(tmp_path: Path) -> None:
    with WholeServer(tmp_path, "--served-model-name", "shapes", "dall-e-3", "--warm-up", "none") as server:
        server.wait_ready()
        short = server.draw(seed=1, num_inference_steps=2, model="dall-e-3").json
        assert short["usage"]["input_tokens"] > 3 and "warnings" not in short
        assert short["peak_memory_mb"] > 50 and short["inference_time_s"] > 0
        cut = server.draw(seed=1, num_inference_steps=2, max_sequence_length=8, guidance_scale=0)
        [warning] = cut.json["warnings"]
        assert "not the last" in warning and json.loads(cut.headers["x-warnings"]) == [warning]
        assert cut.json["usage"]["input_tokens"] == 8
        others = [
            server.draw(seed=1, num_inference_steps=2, **how).json["data"][0]["b64_json"]
            for how in ({"flow_shift": 6.0}, {"scheduler": "unipc"}, {"size": "96x100", "adjust": True})
        ]
        assert len({short["data"][0]["b64_json"], *others}) == 4
        asked = {"max_warmup_steps": 2, "residual_diff_threshold": 9}
        whole, cached, alike = (
            server.draw(seed=1, num_inference_steps=5, **how).json["data"][0]["b64_json"]
            for how in ({}, {"cache": "dbcache,threshold=9,warm_up=2"}, {"cache_dit_params": asked})
        )
        assert whole != cached == alike
