"""/v1/videos over the wire: the official client, plain HTTP for what it does not do, and refusals with reasons."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import warnings
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from omnimuse.core.errors import NumericalError, RequestError
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, MadeFile, Remarks
from omnimuse.media.video import Video, encode_video
from omnimuse.server.openapi import document
from omnimuse.server.routes import videos
from tests.server.asgi import Answer, Client, call, scope
from tests.server.bench import measured
from tests.server.fake_workers import FakeWorkers
from tests.server.video_rig import MODEL, Rig, listening, rig

SLOW = 0.05
LONG = {"num_inference_steps": 1000}


def run(data: Path, act: Callable[[Rig], Awaitable[None]], **choices: Any) -> None:
    async def main() -> None:
        async with rig(data, **choices) as parts:
            await act(parts)

    asyncio.run(asyncio.wait_for(main(), 60))


def run_with_client(data: Path, act: Callable[[Rig, AsyncOpenAI], Awaitable[None]], **choices: Any) -> None:
    async def inner(parts: Rig) -> None:
        async with listening(parts.app) as url:
            async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI ends its own video service
                    await act(parts, client)

    run(data, inner, **choices)


async def ask(
    parts: Rig,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request without a socket; a body goes as JSON."""
    path, _, query = path.partition("?")
    headers = dict(headers or {}) | ({} if body is None else {"content-type": "application/json"})
    content = b"" if body is None else json.dumps(body).encode()
    return await call(parts.app, scope(method, path, headers, query), [content])


async def made(parts: Rig, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A finished video."""
    answer = await ask(parts, "POST", "/v1/videos", {"prompt": "a hill", **(body or {})})
    assert answer.status == 200, answer.content
    video = json.loads(answer.content)
    while video["status"] not in ("completed", "failed"):
        await asyncio.sleep(0.01)
        video = json.loads((await ask(parts, "GET", f"/v1/videos/{video['id']}")).content)
    return video


def test_the_official_client_makes_polls_downloads_lists_and_deletes(tmp_path: Path) -> None:
    async def act(parts: Rig, client: AsyncOpenAI) -> None:
        parts.workers.remarks = Remarks(needs=2**26)
        video = await client.videos.create_and_poll(
            prompt="a hill", model=MODEL, seconds="4", size="64x32", extra_body={"num_inference_steps": 4, "seed": 5}
        )
        assert (video.status, video.progress, video.size, video.seconds) == (
            "completed",
            100,
            "64x32",
            "4",
        )
        assert video.model_extra is not None
        assert video.model_extra["duration_s"] == 4.062, "65 frames at 16 a second"
        assert video.model_extra["file_name"] == f"{video.id}.mp4"
        durations = video.model_extra["stage_durations"]
        assert set(durations) == {"queue", "denoise"} and durations["denoise"] == 0.0 <= durations["queue"]
        assert video.model_extra["timings"] == {f"{stage}_s": round(took, 6) for stage, took in durations.items()}
        assert (video.model_extra["peak_memory_mb"], video.model_extra["inference_time_s"]) == (3.0, 0.0)
        assert video.model_extra["needs_memory_mb"] == 64.0
        assert video.error is None and video.expires_at is not None and video.completed_at is not None
        assert video.expires_at - video.completed_at == pytest.approx(3600, abs=1)
        [request] = parts.workers.started
        assert (request.params.num_frames, request.params.seed, request.prompt) == (65, 5, "a hill")
        content = (await client.videos.download_content(video.id)).read()
        assert b"video of seed 5" in content
        listed = await client.videos.list(limit=1)
        assert [one.id for one in listed.data] == [video.id]
        assert (await client.videos.delete(video.id)).deleted
        with pytest.raises(openai.NotFoundError) as caught:
            await client.videos.retrieve(video.id)
        assert (caught.value.code, caught.value.type) == ("video_not_found", "not_found_error")
        assert caught.value.request_id

    run_with_client(tmp_path, act)


def test_the_official_client_pages_through_all_videos(tmp_path: Path) -> None:
    async def act(parts: Rig, client: AsyncOpenAI) -> None:
        made_ = [(await client.videos.create(prompt=f"hill {number}")).id for number in range(5)]
        for order, expected in (("asc", made_), ("desc", made_[::-1])):
            assert [one.id async for one in client.videos.list(limit=2, order=order)] == expected  # type: ignore[arg-type]

    run_with_client(tmp_path, act)


def test_a_failed_video_is_an_answer_and_not_an_error(tmp_path: Path) -> None:
    async def act(parts: Rig, client: AsyncOpenAI) -> None:
        parts.workers.fail["hill"] = NumericalError("the output is NaN")
        video = await client.videos.create_and_poll(prompt="a hill")
        assert video.status == "failed" and video.error is not None
        assert (video.error.code, video.error.message) == ("numerical_error", "the output is NaN")
        with pytest.raises(openai.ConflictError) as caught:
            await client.videos.download_content(video.id)
        assert caught.value.code == "video_not_ready"
        assert caught.value.response.headers["x-should-retry"] == "false"

    run_with_client(tmp_path, act)


def test_the_official_client_hears_why_a_request_is_refused(tmp_path: Path) -> None:
    async def act(parts: Rig, client: AsyncOpenAI) -> None:
        for fields, param, code in (
            ({"size": "60x32"}, "size", "invalid_value"),
            ({"seconds": "-1"}, "seconds", "invalid_value"),
            ({"seconds": "1e9"}, "seconds", "invalid_value"),
            ({"input_reference": b"\x89PNG\r\n\x1a\n"}, "input_reference", "unsupported_parameter"),
            ({"extra_body": {"num_frame": 5}}, "num_frame", "unknown_parameter"),
            ({"extra_body": {"num_frames": "6"}}, "num_frames", "invalid_value"),
            ({"extra_body": {"num_inference_steps": "0"}}, "num_inference_steps", "invalid_value"),
            ({"extra_body": {"lora[path]": "/etc/passwd"}}, "lora", "invalid_value"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.videos.create(prompt="a hill", **fields)  # type: ignore[arg-type]
            assert (caught.value.param, caught.value.code) == (param, code)
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.videos.create(prompt="a hill", model="sora-2")
        assert unknown.value.code == "model_not_found"
        assert parts.workers.started == []

    run_with_client(tmp_path, act)


def test_a_client_is_told_how_long_to_wait_between_polls(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        answer = await ask(parts, "POST", "/v1/videos", {"prompt": "a hill", "num_inference_steps": 100})
        video = json.loads(answer.content)
        assert answer.headers["openai-poll-after-ms"] == "1000"  # nothing is known yet
        assert answer.headers["location"] == f"/v1/videos/{video['id']}"
        assert (video["status"], video["progress"]) == ("queued", 0)
        while video["progress"] < 10:
            await asyncio.sleep(0.05)
            answer = await ask(parts, "GET", f"/v1/videos/{video['id']}")
            video = json.loads(answer.content)
        assert video["status"] == "in_progress" and video["eta_seconds"] > 0
        told = int(answer.headers["openai-poll-after-ms"])  # whole milliseconds
        assert abs(told - min(max(250, 100 * video["eta_seconds"]), 10_000)) < 2

    run(tmp_path, act, pace=SLOW)


@pytest.mark.parametrize(
    ("given", "ours", "named"),
    [
        ({"size": "64x32"}, "height", "size"),
        ({"n": 1}, "num_outputs_per_prompt", "n"),
        ({"video_params": {"fps": 8}}, "fps", "video_params.fps"),
        ({"prompt": "a hill"}, "prompt", "prompt"),
    ],
)
def test_a_video_that_failed_for_a_field_names_it_as_the_client_did(
    given: dict[str, Any], ours: str, named: str, tmp_path: Path
) -> None:
    async def act(parts: Rig) -> None:
        parts.workers.fail["hill"] = RequestError(f"{ours}=9 cannot be", ours)
        error = (await made(parts, given))["error"]
        assert error["param"] == named and error["message"].startswith(named)

    run(tmp_path, act)


def test_a_cancelled_video_has_failed_and_a_deleted_one_is_gone(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        first, second = [
            json.loads((await ask(parts, "POST", "/v1/videos", {"prompt": "a hill", **LONG})).content)["id"]
            for _ in range(2)
        ]
        while not parts.workers.running:
            await asyncio.sleep(0.01)
        for name in (second, first):  # the second waits for the first
            answer = await ask(parts, "POST", f"/v1/videos/{name}/cancel")
            video = json.loads(answer.content)
            assert (answer.status, video["status"], video["error"]["code"]) == (200, "failed", "cancelled")
            assert "openai-poll-after-ms" not in answer.headers
            answer = await ask(parts, "DELETE", f"/v1/videos/{name}")
            assert json.loads(answer.content) == {"id": name, "object": "video.deleted", "deleted": True}
            assert (await ask(parts, "DELETE", f"/v1/videos/{name}")).error["code"] == "video_not_found"
        while parts.workers.running:
            await asyncio.sleep(0.01)
        assert len(parts.workers.started) == 1

    run(tmp_path, act, pace=SLOW)


def test_content_comes_whole_in_ranges_and_as_a_head(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        video = await made(parts)
        path = f"/v1/videos/{video['id']}/content"
        whole = await ask(parts, "GET", path)
        assert (whole.status, whole.headers["content-type"]) == (200, "video/mp4")
        assert whole.headers["etag"] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
        part = await ask(parts, "GET", path + "?variant=video", headers={"range": "bytes=4-7"})
        assert (part.status, part.content) == (206, b"ftyp")
        head = await ask(parts, "HEAD", path)
        assert (head.status, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))
        for wanted in ("bytes=999999-", "bytes=0-0,2-2"):
            refused = await ask(parts, "GET", path, headers={"range": wanted})
            assert (refused.status, refused.error["code"]) == (416, "invalid_range")
        refused = await ask(parts, "GET", f"{path}?variant=../x")
        assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "invalid_value", "variant")

    run(tmp_path, act)


class Filmers(FakeWorkers):
    """Workers whose videos can be played."""

    def _file(self, request: Request, output: int, form: Form) -> MadeFile:
        frames = tuple(Image.new("RGB", (64, 32), (10 * number, 90, 200)) for number in range(20))
        content = encode_video(Video(frames, 8.0), {})
        name = f"{request.id}.mp4"
        (self.spool / name).write_bytes(content)
        return MadeFile(name, len(content), hashlib.sha256(content).hexdigest(), 1, 64, 32, len(frames), 8.0)


def filmers(spool: Path, pace: float, ready: bool) -> FakeWorkers:
    return Filmers(spool, pace, ready=ready)


def test_stills_of_a_video_are_made_once_and_removed_with_it(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")

    async def act(parts: Rig, client: AsyncOpenAI) -> None:
        video = await client.videos.create_and_poll(prompt="a hill")
        variants: tuple[tuple[Any, str, tuple[int, int]], ...] = (
            ("thumbnail", "WEBP", (64, 32)),
            ("spritesheet", "JPEG", (256, 128)),
        )
        for variant, form, size in variants:
            answers = await asyncio.gather(
                *(client.videos.download_content(video.id, variant=variant) for _ in range(2))
            )
            assert answers[0].response.headers["content-type"] == f"image/{form.lower()}"
            assert answers[0].content == answers[1].content
            with Image.open(io.BytesIO(answers[0].content)) as picture:
                assert (picture.format, picture.size) == (form, size)
            path = f"/v1/videos/{video.id}/content?variant={variant}"
            seen = {"if-none-match": answers[0].response.headers["etag"]}
            assert (await ask(parts, "GET", path, headers=seen)).status == 304
        [film] = [name for name in parts.kept() if name.endswith(".mp4")]
        assert len(parts.kept()) == 3
        still = parts.service.options.data / "files" / film.replace(".mp4", ".webp")
        still.write_bytes(b"kept")  # what is there is not made again
        assert (await client.videos.download_content(video.id, variant="thumbnail")).content == b"kept"
        await client.videos.delete(video.id)
        assert parts.kept() == []

    run_with_client(tmp_path, act, workers=filmers)


def test_a_video_that_cannot_be_read_costs_one_answer_and_tells_no_path(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        video = await made(parts)  # of bytes that are no video
        answer = await ask(parts, "GET", f"/v1/videos/{video['id']}/content?variant=thumbnail")
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert str(tmp_path).encode() not in answer.content
        assert len(parts.kept()) == 1
        assert (await ask(parts, "GET", f"/v1/videos/{video['id']}/content")).status == 200

    run(tmp_path, act)


def test_a_still_of_a_video_that_is_removed_meanwhile_stays_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")

    async def act(parts: Rig) -> None:
        video = await made(parts)
        path = f"/v1/videos/{video['id']}/content?variant=spritesheet"
        asking = asyncio.create_task(ask(parts, "GET", path))
        await asyncio.sleep(0.05)
        await ask(parts, "DELETE", f"/v1/videos/{video['id']}")
        assert (await asking).error["code"] in ("video_not_found", "internal_error")  # the reader may be there first
        assert parts.kept() == []
        leaving = asyncio.create_task(
            ask(parts, "GET", f"/v1/videos/{(await made(parts))['id']}/content?variant=thumbnail")
        )
        await asyncio.sleep(0.05)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert all(name.endswith(".mp4") for name in parts.kept())

    run(tmp_path, act, workers=filmers)


def test_content_of_an_unfinished_video_is_a_conflict(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        video = json.loads((await ask(parts, "POST", "/v1/videos", {"prompt": "a hill"})).content)
        answer = await ask(parts, "GET", f"/v1/videos/{video['id']}/content")
        assert (answer.status, answer.error["code"]) == (409, "video_not_ready")
        assert answer.headers["x-should-retry"] == "false"

    run(tmp_path, act, ready=False)


def test_the_same_key_is_answered_with_the_same_video(tmp_path: Path) -> None:
    key = {"idempotency-key": "abc"}

    async def act(parts: Rig) -> None:
        body = {"prompt": "a hill"}
        answers = await asyncio.gather(*(ask(parts, "POST", "/v1/videos", body, key) for _ in range(10)))
        assert len({json.loads(answer.content)["id"] for answer in answers}) == 1
        assert sum("idempotent-replayed" in answer.headers for answer in answers) == 9
        other = await ask(parts, "POST", "/v1/videos", {"prompt": "a lake"}, key)
        assert (other.status, other.error["code"]) == (409, "idempotency_conflict")
        assert other.headers["x-should-retry"] == "false"

    run(tmp_path, act)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=%C2%B2", "limit"),
        ("order=up", "order"),
        ("after=video_0", "after"),
        ("page=2", "page"),
    ],
)
def test_a_list_refuses_what_it_does_not_know(tmp_path: Path, query: str, param: str) -> None:
    async def act(parts: Rig) -> None:
        answer = await ask(parts, "GET", f"/v1/videos?{query}")
        assert (answer.status, answer.error["param"]) == (400, param)

    run(tmp_path, act)


def test_an_empty_list_is_a_list(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        answer = await ask(parts, "GET", "/v1/videos")
        assert json.loads(answer.content) == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    run(tmp_path, act)


def test_a_video_of_another_key_does_not_exist(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ann:secret-of-ann-0123456789\nbob:secret-of-bob-0123456789\n")
    ann, bob = ({"authorization": f"Bearer secret-of-{name}-0123456789"} for name in ("ann", "bob"))

    async def act(parts: Rig) -> None:
        answer = await ask(parts, "POST", "/v1/videos", {"prompt": "a hill"}, ann)
        name = json.loads(answer.content)["id"]
        assert (await ask(parts, "GET", f"/v1/videos/{name}", headers=ann)).status == 200
        for method, path in (
            ("GET", ""),
            ("GET", "/content"),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            answer = await ask(parts, method, f"/v1/videos/{name}{path}", headers=bob)
            assert (answer.status, answer.error["code"]) == (404, "video_not_found")
        assert json.loads((await ask(parts, "GET", "/v1/videos", headers=bob)).content)["data"] == []
        assert (await ask(parts, "GET", f"/v1/videos?after={name}", headers=bob)).status == 400
        assert (await ask(parts, "GET", f"/v1/videos/{name}")).status == 401

    run(tmp_path / "data", act, key_file=keys)


def events_of(content: bytes) -> list[tuple[str, Any]]:
    """(name, value) of every event of a stream."""
    found = []
    for block in content.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def test_events_tell_every_step_show_looks_and_end_with_the_video(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        answer = await ask(parts, "POST", "/v1/videos", {"prompt": "a hill"})
        name = json.loads(answer.content)["id"]
        parts.workers.ready = True
        stream = await ask(parts, "GET", f"/v1/videos/{name}/events")
        events = events_of(stream.content)
        assert events[0] == (
            "video.progress",
            {"type": "video.progress", "id": name, "status": "queued", "progress": 0},
        )
        steps = [value for kind, value in events[1:] if kind == "video.progress"]
        assert [(value["step"], value["steps"], value["stage"]) for value in steps] == [
            (step, 4, "denoise") for step in range(1, 5)
        ]
        assert [value["progress"] for value in steps] == [22, 45, 67, 90]
        looks = [value for kind, value in events if kind == "video.preview"]
        assert len(looks) == 4 and looks[0]["b64_json"].startswith("/9j/")
        kind, value = events[-2]
        assert (kind, value["video"]["status"]) == ("video.completed", "completed")
        assert events[-1] == ("", "[DONE]")
        late = events_of((await ask(parts, "GET", f"/v1/videos/{name}/events")).content)
        assert [kind for kind, _ in late] == ["video.completed", ""]

    run(tmp_path, act, pace=SLOW, ready=False)


def test_the_events_of_a_deleted_video_end(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        name = json.loads((await ask(parts, "POST", "/v1/videos", {"prompt": "a hill"})).content)["id"]
        watching = asyncio.create_task(ask(parts, "GET", f"/v1/videos/{name}/events"))
        await asyncio.sleep(0.1)
        await ask(parts, "DELETE", f"/v1/videos/{name}")
        kind, value = events_of((await watching).content)[-2]
        assert (kind, value["video"]["error"]["code"]) == ("video.failed", "cancelled")

    run(tmp_path, act, ready=False)


def test_a_video_at_once_is_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        answer = await ask(parts, "POST", "/v1/videos/sync", {"prompt": "a hill", "seed": 9})
        assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")
        assert b"video of seed 9" in answer.content
        assert answer.headers["x-seed"] == "9"
        assert (parts.spooled(), parts.kept()) == ([], [])
        assert json.loads((await ask(parts, "GET", "/v1/videos")).content)["data"] == []

    run(tmp_path, act)


def test_a_file_cannot_tell_what_every_block_took(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        answer = await ask(parts, "POST", "/v1/videos/sync", {"prompt": "a hill", "block_timings": True})
        assert (answer.error["code"], answer.error["param"]) == ("unsupported_parameter", "block_timings")
        assert "a job at /v1/videos tells it" in answer.error["message"]
        assert "block_timings" in await made(parts, {"block_timings": True})

    run(tmp_path, act)


@pytest.mark.parametrize("words", [(), ("--stream",)])
def test_a_bench_of_videos_counts_the_jobs_that_were_done_and_leaves_none(tmp_path: Path, words: Sequence[str]) -> None:
    async def act(parts: Rig) -> None:
        async with listening(parts.app) as url:
            asked = (
                "--task",
                "videos",
                "--mix",
                "64x32x9@20",
                "--image",
                "made",
                "--requests",
                "3",
                "--blocks",
                *words,
            )
            figures = await asyncio.to_thread(measured, url, *asked)
            wrong = await asyncio.to_thread(measured, url, "--task", "videos", "--requests", "1")
        assert (figures["ok"], figures["first_preview"]["count"]) == (3, 3 * len(words)), figures["messages"]
        assert figures["stages"]["denoise"]["count"] == 3
        assert all(
            each.blocks and each.params.num_frames == 9 and len(each.images) == 1 for each in parts.workers.started
        )
        assert (wrong["ok"], wrong["errors"]) == (0, {"missing_parameter": 1}), "no picture came with it"
        assert (parts.spooled(), parts.kept()) == ([], [])

    run(tmp_path, act, pictures=(1, 1), pace=SLOW if words else 0.0)


def test_a_bench_tells_a_job_that_failed_from_one_that_takes_too_long(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        async with listening(parts.app) as url:
            asked = (url, "--task", "videos", "--requests", "1")
            late = await asyncio.to_thread(measured, *asked, "--steps", "900", "--timeout", "3")
            assert not parts.workers.running, "what nobody waits for is stopped"
            parts.workers.fail["background"] = NumericalError("the output is NaN")
            failed = [await asyncio.to_thread(measured, *asked, *words) for words in ((), ("--stream",))]
        assert late["errors"] == {"timeout": 1}
        assert [each["messages"] for each in failed] == [{"numerical_error": {"the output is NaN": 1}}] * 2

    run(tmp_path, act, pace=SLOW)


def test_a_video_at_once_stops_when_its_client_goes(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        body = json.dumps({"prompt": "a hill", **LONG}).encode()
        client = Client([body])
        asked = scope("POST", "/v1/videos/sync", {"content-type": "application/json"})
        serving = asyncio.create_task(parts.app(asked, client.receive, client.send))
        while not parts.workers.running:
            await asyncio.sleep(0.01)
        client.leave.set()
        await asyncio.wait_for(serving, 60)
        assert parts.workers.running == set()
        assert parts.service.admission.load().count == 0

    run(tmp_path, act, pace=SLOW)


def test_a_video_job_goes_on_when_its_client_has_gone(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        client = Client([json.dumps({"prompt": "a hill"}).encode()])
        client.leave.set()  # it has sent its request, and closes
        await parts.app(scope("POST", "/v1/videos", {"content-type": "application/json"}), client.receive, client.send)
        [video] = json.loads((await ask(parts, "GET", "/v1/videos")).content)["data"]
        while video["status"] != "completed":
            await asyncio.sleep(0.01)
            video = json.loads((await ask(parts, "GET", f"/v1/videos/{video['id']}")).content)

    run(tmp_path, act)


def test_the_number_of_frames_counts_and_the_length_is_repeated_as_it_was_asked_for(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        video = await made(parts, {"seconds": 4, "num_frames": 9, "adjust": True, "size": "60x30"})
        assert (video["seconds"], video["duration_s"], video["num_frames"], video["size"]) == ("4", 0.562, 9, "64x32")
        assert [told.split(",")[0] for told in video["warnings"]] == ["width=60 became 64", "height=30 became 32"]
        assert (await made(parts, {"num_frames": 9}))["seconds"] == "0.562"
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer = await call(parts.app, scope("POST", "/v1/videos", form), [b"prompt=a+hill&size=64x32&seconds=0.3&n=1"])
        assert (answer.status, json.loads(answer.content)["seconds"]) == (200, "0.3")

    run(tmp_path, act)


def test_ids_of_another_shape_are_unknown_and_reach_no_file(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        for name in ("x", "video_", "..%2F..%2Fjobs.sqlite", "%00", "video_" + "0" * 3000):
            for path in ("", "/content"):
                answer = await ask(parts, "GET", f"/v1/videos/{name}{path}")
                assert answer.status == 404, name
                assert len(answer.error["message"]) < 300

    run(tmp_path, act)


def test_every_route_is_described_and_every_description_is_routed(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        routed = {(method, route.path) for route in videos.routes(parts.service) for method in route.methods or ()}
        described = {(operation.method, operation.path) for operation in videos.OPERATIONS}
        assert described <= routed
        assert document(videos.OPERATIONS, "1")["paths"]["/v1/videos"]["post"]["requestBody"]

    run(tmp_path, act)


def test_a_video_at_once_takes_no_idempotency_key_and_says_so(tmp_path: Path) -> None:
    async def act(parts: Rig) -> None:
        headers = {"content-type": "application/json", "idempotency-key": "k"}
        answer = await call(parts.app, scope("POST", "/v1/videos/sync", headers), [b'{"prompt": "a hill"}'])
        assert (answer.status, answer.error["code"]) == (400, "unsupported_parameter")
        assert answer.error["param"] == "idempotency-key" and parts.workers.started == []

    run(tmp_path, act)
