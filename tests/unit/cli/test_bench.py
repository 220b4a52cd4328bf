"""`omnimuse bench serve` against a small server of known delays, refusals and faults, and its figures by themselves."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from omnimuse.cli import bench, main
from omnimuse.cli.bench import read_load, read_mix, spread, summarize
from omnimuse.cli.bench_asks import TASKS
from omnimuse.cli.bench_http import Target
from omnimuse.cli.bench_serve import Client, Entry, Load, Outcome, choices
from omnimuse.cli.plot import GAP, LINE
from omnimuse.core.errors import RequestError

FAST, SLOW = 0.02, 0.25
"""Seconds that the server takes for 64 and for 128 pixels."""
FAULTS = {
    13: (500, {"error": {"code": "internal_error"}}),
    14: (503, {"error": {"code": "worker_lost"}}),
    15: (200, {"data": []}),
    16: (404, {"detail": "not ours"}),
    20: (
        400,
        {"error": {"code": "invalid_value", "message": "num_inference_steps=20\x1b[2J is too many;\nuse 1 to 10"}},
    ),
    21: (400, {"error": {"code": "invalid_value", "message": 21}}),
    22: (400, {"error": "wrong"}),
}
"""What it answers to so many steps."""


class FakeServer:
    """Pictures after a delay by width, for at most `capacity` clients at once; faults by the number of steps.

    None before `wanted` requests have come.
    """

    def __init__(self, capacity: int = 1000, wanted: int = 0) -> None:
        self.capacity, self.wanted, self.open = capacity, wanted, 0
        self.asked, self.keys = list[dict[str, object]](), set[str]()
        routes = [
            Route("/v1/images/generations", self.pictures, methods=["POST"]),
            Route("/v1/models", self.models),
        ]
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> FakeServer:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    async def models(self, request: Request) -> Response:
        if request.headers.get("authorization", "Bearer key") != "Bearer key":
            return JSONResponse({"error": {"code": "invalid_api_key"}}, 401)
        return JSONResponse({"data": [{"id": "the model"}]})

    async def pictures(self, request: Request) -> Response:
        fields = await request.json()
        self.asked.append(fields)
        self.keys.add(request.headers.get("authorization", ""))
        steps = fields.get("num_inference_steps")
        if self.open >= self.capacity:
            return JSONResponse({"error": {"code": "queue_full"}}, 429, {"retry-after": "0.01"})
        if steps in FAULTS:
            status, body = FAULTS[steps]
            return JSONResponse(body, status)
        if steps == 17:
            return PlainTextResponse("no JSON", 200)
        if fields.get("stream"):
            return StreamingResponse(self._stream(steps), media_type="text/event-stream")
        self.open += 1
        try:
            await asyncio.sleep(FAST if fields.get("size") == "64x64" else SLOW)
            while len(self.asked) < self.wanted:
                await asyncio.sleep(0.01)
        finally:
            self.open -= 1
        told: dict[str, object] = {"timings": {"queue_s": 0.001, "denoise_s": 0.5}, "peak_memory_mb": 321.0}
        if fields.get("block_timings"):
            told |= {"block_timings": {"net.blocks.0": 0.25}, "block_bytes": {"net.blocks.0": 2**21}}
            told |= {"steps": {"denoise": [0.125, 0.375]}, "bytes": {"denoise": [2**20, 3 * 2**20], "a_b": [2**22]}}
        return JSONResponse({"data": [{"b64_json": "A" * 200_000}], **told})

    async def _stream(self, steps: object) -> AsyncIterator[str]:
        yield ": keep-alive\n\n"
        for index in range(2):
            await asyncio.sleep(FAST)
            event = {"type": "image_generation.partial_image", "partial_image_index": index, "b64_json": "A" * 99_999}
            yield f"event: x\ndata: {json.dumps(event)}\n\n"
        await asyncio.sleep(SLOW)
        if steps == 18:
            yield 'event: error\r\ndata: {"type": "error",\r\ndata: "error": {"code": "numerical_error"}}\r\n\r\n'
        elif steps != 19:
            yield 'data: {"type": "image_generation.completed", "b64_json": "QQ=="}\n\n'
            yield "data: [DONE]\n\n"


@pytest.fixture(scope="module")
def one_server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def server(one_server: FakeServer) -> FakeServer:
    """The server that all tests share, with nothing asked yet."""
    one_server.asked.clear()
    one_server.keys.clear()
    return one_server


def measure(server: FakeServer, *words: str) -> tuple[dict[str, object], list[Outcome]]:
    """The figures of one run of the command's options, as JSON would have them, and what they were made of."""
    load = read_load(options(*words))
    outcomes, _ = asyncio.run(bench.measure(Target.read(server.url, ""), load, io.StringIO()))
    return summarize(outcomes, None), outcomes


def options(*words: str) -> argparse.Namespace:
    """What argparse makes of the words after `omnimuse bench serve`."""
    parser = argparse.ArgumentParser()
    bench.add_options(parser)
    return parser.parse_args(["serve", *words])


# -- against a server ----------------------------------------------------------------------------------------------


def test_a_closed_loop_measures_each_kind_by_itself(server: FakeServer) -> None:
    figures, outcomes = measure(server, "--concurrency", "4", "--requests", "24", "--mix", "64x64@2:3,128x128")
    fast, slow = figures["latency_of"]["64x64@2"], figures["latency_of"]["128x128"]
    assert figures["ok"] == fast["count"] + slow["count"] == 24
    assert fast["count"] > slow["count"] > 0
    assert fast == spread([one.latency for one in outcomes if one.entry.name == "64x64@2"])
    assert min(one.latency for one in outcomes) >= FAST
    assert slow["p50"] >= SLOW
    assert figures["throughput"] == pytest.approx(24 / figures["seconds"])
    assert (figures["stages"]["denoise"]["p50"], figures["stages"]["queue"]["count"]) == (0.5, 24)
    assert figures["held_mb"] == 321 and not figures["blocks"]
    assert all(asked.get("num_inference_steps") == 2 for asked in server.asked if asked["size"] == "64x64")
    assert all("num_inference_steps" not in asked for asked in server.asked if asked["size"] == "128x128")
    assert {asked["model"] for asked in server.asked} == {"the model"}


def test_what_blocks_and_steps_took_is_asked_for_and_shown_beside_the_stages(server: FakeServer) -> None:
    figures, _ = measure(server, "--requests", "2", "--mix", "64x64", "--blocks")
    assert (figures["blocks"]["net.blocks.0"]["p50"], figures["blocks"]["net.blocks.0"]["count"]) == (0.25, 2)
    shown = bench.text({**figures, "url": "", "model": "", "load": bench.describe(read_load(options("--blocks")))})
    steps = r" +in a step of denoise +4 +125 +375 +375 +375\n"
    assert re.search(rf"in denoise +2 +500 .* 3 MiB\n{steps} +in net\.blocks\.0 +2 +250 .* 2 MiB$", shown)
    assert "held\n" in shown and figures["bytes"]["a_b"] == 2**22
    figures, _ = measure(server, "--requests", "1", "--mix", "64x64")
    assert figures["steps"] == figures["bytes"] == {}


def test_an_open_loop_does_not_wait_for_answers() -> None:
    with FakeServer(wanted=20) as server:  # nobody is answered before the last has asked
        figures, _ = measure(server, "--rate", "40", "--requests", "20", "--mix", "64x64")
    assert figures["ok"] == 20


def test_an_open_loop_ends_with_its_time_and_a_closed_one_too(server: FakeServer) -> None:
    _, opened = measure(server, "--rate", "50", "--duration", "0.5", "--mix", "64x64")
    _, again = measure(server, "--rate", "50", "--duration", "0.5", "--mix", "64x64")
    assert sorted(one.due for one in opened) == sorted(one.due for one in again), "when is drawn from the seed"
    assert 10 < len(opened) < 40
    _, closed = measure(server, "--concurrency", "2", "--duration", "0.5", "--mix", "64x64")
    assert len(closed) >= 2
    assert max(one.due for one in opened + closed) <= 0.5


def test_refusals_are_no_failures_and_no_waste() -> None:
    with FakeServer(capacity=1, wanted=20) as server:
        figures, _ = measure(server, "--rate", "40", "--requests", "20", "--mix", "128x128")
    assert (figures["ok"], figures["rejected"]) == (1, 19)
    assert figures["failed"] == figures["wasted"]["requests"] == figures["wasted"]["share"] == 0
    assert figures["errors"] == {"queue_full": 19}
    assert figures["rejection"]["count"] == 19


def test_a_client_that_was_refused_waits_as_it_was_told() -> None:
    with FakeServer(capacity=1) as server:
        figures, _ = measure(server, "--concurrency", "2", "--requests", "10", "--mix", "128x128")
    assert 0 < figures["rejected"] < 10


def test_pictures_that_come_late_are_wasted_by_their_work() -> None:
    small, large = read_mix("64x64@4,128x128@4")
    quick = [Outcome(small, due=n, sent=n, ended=n + 0.1, status=200) for n in range(8)]
    late = [Outcome(large, due=n, sent=n, ended=n + 0.3, status=200) for n in range(4)]
    figures = summarize(quick + late, slo=0.25)
    assert (figures["ok"], figures["within_slo"], figures["wasted"]["requests"]) == (12, 8, 4)
    assert figures["wasted"]["share"] == pytest.approx(4 * 4 / (4 * 4 + 8))
    assert figures["goodput"] < figures["throughput"]


def test_the_first_preview_of_a_stream_is_timed(server: FakeServer) -> None:
    figures, outcomes = measure(server, "--requests", "3", "--stream")
    assert figures["ok"] == figures["first_preview"]["count"] == 3
    assert all(one.previewed is not None and FAST <= one.previewed - one.due < one.latency for one in outcomes)
    assert min(one.latency for one in outcomes) >= SLOW
    assert all(asked["stream"] is True and asked["partial_images"] == 3 for asked in server.asked)


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize(
    ("mix", "words", "code"),
    [
        ("64x64@13", (), "internal_error"),
        ("64x64@14", (), "worker_lost"),
        ("64x64@15", (), "invalid_answer"),
        ("64x64@17", (), "invalid_answer"),
        ("64x64@18", ("--stream",), "numerical_error"),
        ("64x64@19", ("--stream",), "invalid_answer"),
        ("128x128", ("--timeout", "0.1"), "timeout"),
    ],
)
def test_every_other_answer_without_a_picture_is_a_failure(
    server: FakeServer, mix: str, words: tuple[str, ...], code: str
) -> None:
    figures, _ = measure(server, "--requests", "1", "--mix", mix, *words)
    assert (figures["ok"], figures["failed"], figures["rejected"]) == (0, 1, 0)
    assert figures["errors"] == {code: 1}
    assert figures["wasted"]["share"] == 1
    assert figures["latency"] == {"count": 0, "p50": None, "p90": None, "p99": None, "max": None}


def test_a_request_that_is_wrong_is_a_failure_and_no_work_and_the_server_says_once_what_is(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = "64x64@20:9,64x64@16,64x64@21,64x64@22"
    assert main(["bench", "serve", "--url", server.url, "--rate", "100", "--requests", "40", "--mix", mix]) == 1
    steps = Counter(asked["num_inference_steps"] for asked in server.asked)
    assert set(steps) == {16, 20, 21, 22}
    said = capsys.readouterr().out
    assert "requests    40: 0 pictures, 0 refused, 40 failed\n" in said
    assert "wasted      0.0% of the work taken on (0 requests)\n" in said
    assert {line.strip() for line in said.split("errors")[1].splitlines()[1:4]} == {
        rf"invalid_value {steps[20]}: num_inference_steps=20\x1b[2J is too many; use 1 to 10",
        f"http_404 {steps[16]}: not ours",
        f"http_400 {steps[22]}: wrong",
    }


def test_messages_that_differ_are_counted_and_the_most_frequent_are_shown() -> None:
    words = ["common", "common", *(f"after {n} s" for n in range(6))]
    outcomes = [Outcome(Entry("auto"), 0, 0, 1, status=429, code="queue_full", message=each) for each in words]
    figures = summarize(outcomes, None)
    assert figures["errors"] == {"queue_full": 8}
    assert list(figures["messages"]["queue_full"].items())[:2] == [("common", 2), ("after 0 s", 1)]
    shown = bench.text(figures | {"url": "u", "model": "m", "load": bench.describe(Load((Entry("auto"),)))})
    assert [line.strip() for line in shown.split("errors")[1].splitlines()[1:5]] == [
        "queue_full 2: common",
        *("queue_full 1: after 0 s", "queue_full 1: after 1 s"),
        "queue_full 4: 4 other messages",
    ]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", "no_connection"),
        (b"SSH-2.0-x\r\n\r\n", "invalid_answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "broken_connection"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n", "broken_connection"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "invalid_answer"),
        (b"HTTP/1.1 500 No\r\n\r\n" + b"[" * 100_000, "http_500"),
        (b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{"data": [{"url": "x"}]}', ""),
    ],
)
def test_a_connection_that_breaks_off_is_told_from_one_that_was_never_made(said: bytes, code: str) -> None:
    assert answered(said, Load((Entry("auto"),), timeout=5)).code == code


def answered(said: bytes, load: Load) -> Outcome:
    """The outcome of one request to a server that says so, and no more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def ask() -> Outcome:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            return await Client(Target("127.0.0.1", port), load).ask(Entry("auto"), "a ring", due=0.0)

    return asyncio.run(ask())


PIECE = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
WORD = {"choices": [{"delta": {"content": "a"}}]}
USED = {"choices": [], "usage": {"completion_tokens": 0}}
DELTA, DONE = {"type": "speech.audio.delta", "audio": ""}, {"type": "speech.audio.done"}
LOOK = {"type": "image_generation.partial_image", "b64_json": "QQ=="}
PICTURE = {"type": "image_generation.completed", "b64_json": ""}


@pytest.mark.parametrize(
    ("task", "events", "code"),
    [
        ("chat", (PIECE, USED), "invalid_answer"),
        ("chat", (PIECE, WORD, USED), ""),
        ("chat", (PIECE, WORD), "invalid_answer"),
        ("speech", (DELTA, DONE), "invalid_answer"),
        ("speech", (DELTA, DELTA | {"audio": "QQ=="}, DONE), ""),
        ("sounds", ({"type": "audio.delta", "audio": ""}, {"type": "audio.done"}), "invalid_answer"),
        ("sounds", ({"type": "audio.delta", "audio": "QQ=="}, {"type": "audio.done"}), ""),
        ("pictures", (LOOK, PICTURE), "invalid_answer"),
        ("pictures", (LOOK, PICTURE | {"b64_json": "QQ=="}), ""),
    ],
)
def test_a_stream_without_anything_in_it_is_no_answer(task: str, events: tuple[object, ...], code: str) -> None:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    said = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + body.encode()
    assert answered(said, Load((Entry("auto"),), timeout=5, task=task, stream=True)).code == code


def test_the_command_prints_the_figures_and_writes_them_whole(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "load.json"
    words = ["--url", f"{server.url}/v1/", "--requests", "3", "--mix", "64x64", "--slo", "5", "--json", str(file)]
    assert main(["bench", "serve", *words, "--api-key", "key"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"server      {server.url}/v1  the model\n" in said.out
    assert "requests    3: 3 pictures, 0 refused, 0 failed\n" in said.out
    assert "pictures a second within 5 s\n" in said.out
    written = json.loads(file.read_text())
    assert written["latency"]["count"] == len(written["rows"]) == 3
    assert written["load"]["kind"] == "closed"
    assert server.keys == {"Bearer key"}
    assert main(["bench", "serve", *words]) == 2
    assert "load.json is there already; choose another name, or --overwrite" in capsys.readouterr().err
    file.write_text("{}")
    assert main(["bench", "serve", *words, "--overwrite"]) == 0 and json.loads(file.read_text())["ok"] == 3


def test_the_times_of_every_good_answer_are_drawn_and_of_none_nothing_is(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "serve", "--url", server.url, "--requests", "3", "--mix", "64x64", "--blocks", "--plot"]
    assert main([*words, str(tmp_path / "a.png")]) == 0
    assert main([*words[:-1], "--steps", "13", "--plot", str(tmp_path / "none.png")]) == 1
    with Image.open(tmp_path / "a.png") as many, Image.open(tmp_path / "none.png") as none:
        assert many.height - none.height == 3 * 2 * GAP + 2 * LINE, "three bars, and one block below its head"
    assert main([*words, str(tmp_path / "a.txt")]) == main([*words, str(tmp_path / "a.png")]) == 2
    assert "a.png is there already" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_measurement_that_is_broken_off_is_said_in_a_word_and_nothing_is_written(
    number: signal.Signals, code: int, server: FakeServer, tmp_path: Path
) -> None:
    words = ["bench", "serve", "--url", server.url, "--duration", "60", "--json", str(tmp_path / "load.json")]
    started = subprocess.Popen([sys.executable, "-m", "omnimuse", *words], stdout=PIPE, stderr=PIPE, text=True)
    while len(server.asked) < 3 and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(number)
    out, said = started.communicate(timeout=60)
    assert (started.returncode, out, len(said.splitlines())) == (code, "", 1), said
    assert not list(tmp_path.iterdir())


def test_no_picture_at_all_is_a_failure_of_the_command(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--url", server.url, "--requests", "1", "--mix", "64x64@13"]) == 1
    assert "errors      internal_error 1\n" in capsys.readouterr().out


def test_no_server_and_a_wrong_key_are_said_in_one_line(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert main(["bench", "serve", "--url", f"127.0.0.1:{port}", "--requests", "1"]) == 2
    assert main(["bench", "serve", "--url", server.url, "--requests", "1", "--api-key", "no"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"no server answers at http://127.0.0.1:{port}/v1" in first
    assert "refuses this key (status 401); give --api-key" in second


# -- options and figures -------------------------------------------------------------------------------------------


def test_the_mix_is_read() -> None:
    assert read_mix("128x96@10:3, 64x64:0.5,auto@4,auto") == (
        Entry("128x96@10", 128, 96, 10, 3.0),
        Entry("64x64", 64, 64, None, 0.5),
        Entry("auto@4", None, None, 4, 1.0),
        Entry("auto"),
    )
    assert read_mix("64x32x9@4:2") == (Entry("64x32x9@4", 64, 32, 4, 2.0, 9),)
    assert [each.steps for each in read_load(options("--mix", "64x64@4,auto", "--steps", "2")).mix] == [4, 2]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "64",
        "64x64@",
        "64x64@0",
        "auto@0",
        "0x64",
        "64x0",
        "64x64:0",
        "64x64,",
        "64x64:-1",
        "64x64:1,64x64:2",
        "big",
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(words: str) -> None:
    with pytest.raises(RequestError, match="--mix"):
        read_mix(words)


@pytest.mark.parametrize(
    "words",
    [
        ("--rate", "1", "--concurrency", "2"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--duration", "-1"),
        ("--requests", "0"),
        ("--timeout", "inf"),
        ("--tokens", "5"),
        ("--task", "chat", "--tokens", "0"),
        ("--task", "chat", "--mix", "64x64"),
        ("--task", "sounds", "--mix", "64x64"),
        ("--task", "sounds", "--blocks"),
        ("--task", "videos", "--tokens", "5"),
        ("--mix", "64x64x9"),
        ("--image", "made"),
        ("--task", "edits", "--video", "film.mp4"),
        ("--task", "edits", "--image", "nowhere.png"),
        ("--task", "videos", "--image", "picture.txt"),
        ("--task", "chat", "--steps", "4"),
        ("--task", "speech", "--blocks"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError):
        read_load(options(*words))


def test_what_comes_with_a_prompt_is_a_file_of_people_s_or_stripes_that_differ(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"a film")
    shown = read_load(options("--task", "videos", "--video", str(film), "--image", "made")).shown
    fields = [TASKS["videos"].showing(shown, prompt) for prompt in ("a ring", "a star", "a ring")]
    assert fields[0]["video"] == {"video_url": "data:video/mp4;base64,YSBmaWxt"}
    assert fields[0] == fields[2] != fields[1]
    assert read_load(options("--task", "edits")).shown == {"image": "made"}
    [picture] = TASKS["edits"].showing({"image": "made"}, "a ring")["images"]  # type: ignore[misc, attr-defined]
    content = base64.b64decode(picture["image_url"].partition(",")[2])
    with Image.open(io.BytesIO(content)) as opened:
        assert (opened.format, opened.size, len(opened.getcolors() or ())) == ("PNG", (256, 256), 8)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://a", "http://a:80/v1"),
        ("https://a/v1/", "https://a:443/v1"),
        ("a:9000", "http://a:9000/v1"),
        ("http://[::1]:8000/api", "http://[::1]:8000/api/v1"),
    ],
)
def test_an_address_is_read(url: str, read: str) -> None:
    assert str(Target.read(url, "")) == read


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:port", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="--url"):
        Target.read(url, "")


def test_the_same_seed_asks_for_the_same_and_prompts_differ() -> None:
    def first(seed: int) -> list[tuple[Entry, str]]:
        stream = choices(Load(read_mix("64x64,128x128:3"), seed=seed))
        return [next(stream) for _ in range(50)]

    assert first(1) == first(1) != first(2)
    assert len({prompt for _, prompt in first(1)}) > 30
    assert 5 <= sum(entry.name == "64x64" for entry, _ in first(1)) <= 20


def test_percentiles_are_values_that_occurred() -> None:
    assert spread([float(n) for n in range(100, 0, -1)]) == {"count": 100, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert spread([7.0]) == {"count": 1, "p50": 7, "p90": 7, "p99": 7, "max": 7}


def test_latency_counts_from_when_a_request_was_due() -> None:
    late = Outcome(Entry("auto"), due=1.0, sent=3.0, ended=4.0, status=200)
    figures = summarize([late], slo=2.0)
    assert figures["latency"]["p50"] == 3.0
    assert figures["within_slo"] == 0
    assert figures["sent_late"]["max"] == 2.0


def test_a_generator_that_is_too_slow_says_so() -> None:
    late = Outcome(Entry("auto"), due=1.0, sent=3.0, ended=4.0, status=200)
    facts = {"url": "http://a", "model": "m", "load": bench.describe(Load(read_mix("auto"), rate=2.0))}
    assert "left 2.00 s late or more" in bench.text(summarize([late], None) | facts)
