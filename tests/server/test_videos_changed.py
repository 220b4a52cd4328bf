"""Videos that start from a video, over the wire: how it may be sent, what is made of it, and what is refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from omnimuse.media.clip import open_changed, open_clip
from omnimuse.media.fetch import FetchRules
from omnimuse.media.picture import open_mask
from omnimuse.media.video import Video, encode_video
from tests.checkpoints.wishes import film, halves
from tests.server.test_video_pictures import ONE, TALL, WIDE, Parts, run_over_http, text
from tests.server.test_videos import run
from tests.server.video_rig import Rig, listening, rig
from tests.unit.media.hostile import encoded
from tests.unit.media.test_track import damaged, filmed

FILM = encode_video(Video(film(32, 16, 7), 10.0), {})
WHERE = f"data:video/mp4;base64,{base64.b64encode(FILM).decode()}"
NO_FILM = b"\0\0\0\x20ftypisom" + bytes(100)


def run_with_videos(
    data: Path, act: Callable[[Rig, httpx2.AsyncClient], Awaitable[None]], *, masks: bool = False
) -> None:
    async def inner(parts: Rig) -> None:
        async with listening(parts.app) as url, httpx2.AsyncClient(base_url=url, timeout=60) as client:
            await act(parts, client)

    run(data, inner, masks=masks)


def test_a_video_that_is_uploaded_comes_with_its_sound(tmp_path: Path) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/videos/sync", files=[text("prompt", "a hill"), ("video", ("a.mp4", filmed()))])
        assert answer.status_code == 200, answer.content
        [request] = parts.workers.started
        assert request.videos == (open_changed(filmed(), len(request.videos[0].frames)),)
        assert request.videos[0].track is not None

    run_with_videos(tmp_path, act)


def test_a_video_whose_sound_is_damaged_comes_without_it_and_says_why(tmp_path: Path) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        form = [text("prompt", "a hill"), ("video", ("a.mp4", damaged(filmed())))]
        answer = await client.post("/v1/videos/sync", files=form)
        assert answer.status_code == 200, answer.content
        [clip] = parts.workers.started[0].videos
        assert clip.track is None and clip.frames == open_clip(filmed(), len(clip.frames)).frames
        [told] = clip.warnings
        assert told.startswith("the sound of the video was left out: the sound cannot be read: its file is damaged")

    run_with_videos(tmp_path, act)


def test_a_video_is_uploaded_and_as_much_of_it_is_decoded_as_is_made_anew(tmp_path: Path) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        form = [text("prompt", "a hill"), text("strength", "0.5"), ("video", ("a.mp4", FILM))]
        answer = await client.post("/v1/videos/sync", files=form)
        assert answer.status_code == 200, answer.content
        [request] = parts.workers.started
        assert request.videos == (open_clip(FILM, 5),)
        params = request.params
        assert (params.num_frames, params.fps, params.strength) == (5, 10.0, 0.5)
        assert (params.width, params.height) == (64, 32)

    run_with_videos(tmp_path, act)


@pytest.mark.parametrize(
    "given", [{"video": WHERE}, {"video_reference": WHERE}, {"video": {"video_url": WHERE}}, {"video": {"url": WHERE}}]
)
def test_a_video_may_come_in_json_and_a_job_starts_from_it(tmp_path: Path, given: dict[str, Any]) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/videos", json={"prompt": "a hill", "num_frames": 1, **given})
        assert answer.status_code == 200, answer.content
        async with client.stream("GET", f"/v1/videos/{answer.json()['id']}/events") as events:
            told = (await events.aread()).decode()
        assert "video.completed" in told
        [request] = parts.workers.started
        assert request.videos == (open_clip(FILM, 1),)

    run_with_videos(tmp_path, act)


@pytest.mark.parametrize(
    ("parts_of_form", "code", "param"),
    [
        ([("video", ("a", NO_FILM))], "invalid_video", "video"),
        ([("video", ("a", WIDE))], "invalid_video", "video"),
        ([("video[]", ("a", FILM))] * 2, "invalid_value", "video[1]"),
        ([("video", ("a", FILM)), text("num_frames", "9")], "invalid_value", "num_frames"),
        ([("video", ("a", FILM)), ("image", ("b", WIDE))], "unsupported_parameter", "image"),
        ([text("video", "https://example.com/a.mp4")], "url_not_allowed", "video"),
        ([text("video", "a.mp4")], "invalid_value", "video"),
        ([text("strength", "0.5")], "invalid_value", "strength"),
    ],
)
def test_what_is_no_video_to_start_from_is_refused(tmp_path: Path, parts_of_form: Parts, code: str, param: str) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/videos", files=[text("prompt", "a hill"), *parts_of_form])
        assert answer.status_code == 400, answer.content
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (code, param), error

    run_with_videos(tmp_path, act)


@pytest.mark.parametrize(("content", "status"), [(FILM, 200), (NO_FILM, 400)])
def test_a_video_is_fetched_from_a_host_that_is_allowed(tmp_path: Path, content: bytes, status: int) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        rules = FetchRules(frozenset({host}), seconds=20, allowed=lambda address: address.is_loopback)
        async with server, rig(tmp_path, fetches=rules) as parts, listening(parts.app) as url:
            async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
                asked = {"prompt": "a hill", "video": {"video_url": f"http://{host}/a.mp4"}}
                answer = await client.post("/v1/videos/sync", json=asked)
                elsewhere = {**asked, "video": f"http://{host}1/a.mp4"}
                refused = await client.post("/v1/videos/sync", json=elsewhere)
        assert answer.status_code == status, answer.content
        assert [request.videos for request in parts.workers.started] == [(open_clip(FILM, 5),)] * (status == 200)
        assert status == 200 or answer.json()["error"]["code"] == "invalid_video"
        assert refused.json()["error"]["code"] == "url_not_allowed"

    asyncio.run(asyncio.wait_for(main(), 60))
    [question] = heard
    assert b"Accept: video/mp4" in question


def test_a_model_that_starts_from_no_video_says_so(tmp_path: Path) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        for sent in (
            {"files": [text("prompt", "x"), ("video", ("a", FILM))]},
            {"json": {"prompt": "x", "video": WHERE}},
        ):
            answer = await client.post("/v1/videos", **sent)  # type: ignore[arg-type]
            assert (
                answer.json()["error"]["message"]
                == "video is not supported: this model starts from no video; leave it out"
            )

    run_over_http(tmp_path, act, ONE)


MASK = encoded(halves(32, 16), "PNG")
MASKS = encode_video(Video(tuple(mask.convert("RGB") for mask in [halves(32, 16)] * 7), 10.0), {})


@pytest.mark.parametrize(("name", "content"), [("mask", MASK), ("video_mask", MASKS)])
def test_what_of_a_video_is_drawn_anew_is_one_mask_for_all_frames_or_one_for_each(
    tmp_path: Path, name: str, content: bytes
) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        form = [text("prompt", "a hill"), ("video", ("a.mp4", FILM)), (name, ("m", content))]
        answer = await client.post("/v1/videos/sync", files=form)
        assert answer.status_code == 200, answer.content
        [request] = parts.workers.started
        assert request.region is not None and request.region.mask is not None
        expected = open_clip(MASKS, 5) if name == "video_mask" else open_mask(halves(32, 16))
        assert request.region.mask == expected

    run_with_videos(tmp_path, act, masks=True)


@pytest.mark.parametrize(
    ("masks", "parts_of_form", "code", "param"),
    [
        (False, [("video", ("a", FILM)), ("mask", ("m", MASK))], "unsupported_parameter", "mask"),
        (True, [("mask", ("m", MASK))], "invalid_value", "mask"),
        (True, [("video", ("a", FILM)), ("mask", ("m", TALL))], "invalid_value", "mask"),
        (
            True,
            [("video", ("a", FILM)), ("mask", ("m", MASK)), ("video_mask", ("n", MASKS))],
            "conflicting_parameters",
            "video_mask",
        ),
    ],
)
def test_a_mask_that_fits_no_video_is_refused(
    tmp_path: Path, masks: bool, parts_of_form: Parts, code: str, param: str
) -> None:
    async def act(parts: Rig, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/videos", files=[text("prompt", "a hill"), *parts_of_form])
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error

    run_with_videos(tmp_path, act, masks=masks)
