"""Readers of what is said and written while it is made who take nothing any more, of a server of real processes.

Each is let go after half a minute, whatever it was told by, holds little of the server's memory until then, and nobody
else waits for it; in pools no process of one keeps what is not taken.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.checkpoints import qwen3_omni, qwen3_tts
from tests.server.pooled import ALOUD, SPOKEN, placed
from tests.server.whole_server import WholeServer

pytest.importorskip("websockets", reason="a server without it has no WebSockets")

from tests.server.websocket import opened

pytestmark = [pytest.mark.costly("readers who take nothing for half a minute"), pytest.mark.timeout(300)]

SPEECH, CHAT = "/v1/audio/speech", "/v1/chat/completions"
SAYING, REALTIME = "/v1/audio/speech/stream", "/v1/realtime"
STALL = 30
"""Seconds in which somebody takes the next piece of an answer."""
WIDTH = 4096
"""Bytes that the kernel holds for a reader, or twice as many."""
GROWTH = 16 * 2**20
"""Bytes by which the server's front process may grow meanwhile."""
STATIONS = 96 * 2**20
"""The same of all processes of pools together, which remember what those who take nothing are told."""
HOW: dict[str, Any] = {"voice": "vivian", "seed": 5, "temperature": 0, "speed": 0.25, "response_format": "pcm"}
LONG = {"max_new_tokens": 1900}
SAID = {"input": "two yellow stars", **HOW, "stream_format": "audio"}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a star"}],
    "stream": True,
    "seed": 4,
    "temperature": 0,
    "modalities": ["text", "audio"],
    "audio": {"voice": "chelsie", "format": "pcm16"},
}
MANY = {"min_tokens": 600, "max_tokens": 600, "n": 8}

Reader = Callable[[str, ExitStack], None]


def narrow(url: str) -> socket.socket:
    """A connection to the server at `url` for which the kernel holds little: of small segments it takes few at once."""
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WIDTH)
    made.settimeout(60)
    where = urlsplit(url)
    made.connect((where.hostname or "", where.port or 0))
    return made


def post(path: str, body: Mapping[str, Any]) -> Reader:
    """One who asks for an answer, reads how its head begins, and nothing more."""

    def begin(url: str, stack: ExitStack) -> None:
        connection, content = stack.enter_context(narrow(url)), json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert connection.recv(12) == b"HTTP/1.1 200"

    return begin


def live(path: str, *events: Mapping[str, Any]) -> Reader:
    """One who says these events on a WebSocket, and reads nothing."""

    def begin(url: str, stack: ExitStack) -> None:
        made = stack.enter_context(opened(url, path, sock=narrow(url), max_queue=1, ping_interval=None))
        for event in events:
            made.socket.send(json.dumps(event))

    return begin


HELLO = {
    "type": "conversation.item.create",
    "item": {
        "id": "hello",
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "a star " * 60}],
    },
}


@dataclass(frozen=True)
class Kind:
    """A model, the `pools` that it may be in, `asked` for something short at `path`, and who takes nothing of what is
    long, by path.
    """

    build: Callable[[Path], Path]
    path: str
    asked: Mapping[str, Any]
    readers: tuple[tuple[str, Reader], ...]
    pools: tuple[dict[str, Any], ...] = ()


KINDS = {
    "speech": Kind(
        partial(qwen3_tts.build, codec={"upsample_rates": [16, 16]}),  # a frame has many samples
        SPEECH,
        {**SAID, "max_new_tokens": 20},
        (
            (SPEECH, post(SPEECH, {**SAID, **LONG})),
            (SPEECH, post(SPEECH, {**SAID, **LONG, "stream_format": "sse"})),
            (
                SAYING,
                live(
                    SAYING,
                    {"type": "session.config", **HOW, **LONG, "stream_audio": True},
                    {"type": "input.text", "text": "two yellow stars"},
                    {"type": "input.done"},
                ),
            ),
        ),
        SPOKEN,
    ),
    "chat": Kind(
        qwen3_omni.build,
        CHAT,
        {**ASKED, "max_tokens": 10},
        (
            (CHAT, post(CHAT, {**ASKED, **MANY})),
            (
                REALTIME,
                live(
                    REALTIME,
                    {"type": "session.update", "session": {"max_output_tokens": 900, "min_tokens": 900}},
                    HELLO,
                    {"type": "response.create"},
                    *[{"type": "conversation.item.retrieve", "item_id": "hello"}] * 1000,  # an answer alone is short
                ),
            ),
        ),
        ALOUD,
    ),
}


def of_all(processes: Sequence[psutil.Process]) -> int:
    """The bytes that they hold together."""
    return sum(each.memory_info().rss for each in processes)


def answered(server: WholeServer) -> list[tuple[str, float]]:
    """The requests that have ended, by path, and how long they took."""
    lines = (json.loads(line) for line in server.text.splitlines() if line.startswith("{"))
    return [(line["path"], line["seconds"]) for line in lines if line.get("event") == "answered"]


@pytest.mark.parametrize(("name", "spread"), [(name, spread) for name in KINDS for spread in (False, True)])
def test_who_takes_nothing_is_let_go_after_a_while_holds_little_and_keeps_nobody(
    name: str, spread: bool, tmp_path: Path
) -> None:
    kind = KINDS[name]
    model = str(kind.build(tmp_path / "tiny"))
    place = placed(tmp_path, *(kind.pools if spread else ()))
    options = ("--dtype", "float32", "--device", "cpu", "--log-format", "json", *place)
    with WholeServer(tmp_path / "server", model, *options) as server, ExitStack() as stack:
        server.wait_ready()
        expected = server.ask(kind.path, kind.asked)
        assert expected.status == 200, expected.content
        front, began = psutil.Process(server.process.pid), time.monotonic()
        stations = [each for each in front.children(recursive=True) if "deploy.station" in " ".join(each.cmdline())]
        assert bool(stations) == spread
        before, held = front.memory_info().rss, of_all(stations)
        for _, begin in kind.readers:
            begin(server.url, stack)
        assert server.ask(kind.path, kind.asked).status == 200, "others are served"
        assert time.monotonic() - began < STALL
        most = most_held = 0
        while len(gone := [one for one in answered(server) if one[1] > STALL]) < len(kind.readers):
            assert time.monotonic() - began < 3 * STALL, answered(server)
            most, most_held = max(most, front.memory_info().rss), max(most_held, of_all(stations))
            time.sleep(0.2)
        assert sorted(path for path, _ in gone) == sorted(path for path, _ in kind.readers)
        assert most - before < GROWTH and most_held - held < STATIONS
        assert all(each.is_running() for each in stations), "none was started again"
        until = time.monotonic() + STALL
        while server.ask("/load").json["requests"]:
            assert time.monotonic() < until
            time.sleep(0.1)
