"""Clients that ask and do not read: what they pin is a piece, never an answer, and not for long."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from omnimuse.server.http.checks import Rules
from omnimuse.server.http.connections import Connection
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from tests.server.asgi import Client, call, scope
from tests.server.picture_server import Running, picture_server, service_in
from tests.server.uvicorn_thread import served

IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MIB = 2**20
PIECE = 256 * 1024
"""What one answer may hold in memory, at most."""


class Stuck(Client):
    """Takes so many messages of the answer, then nothing more."""

    def __init__(self, content: bytes = b"", messages: int = 1) -> None:
        super().__init__([content])
        self.longest, self.seen = 0, 0
        self._messages = messages

    async def send(self, message: Message) -> None:
        self.longest = max(self.longest, len(message.get("body", b"")))
        self.seen += 1
        if self.seen > self._messages:
            await asyncio.Event().wait()


async def job_with(app: Starlette, size: int, data: Path) -> str:
    """The id of a finished job whose picture was replaced by a file of `size` bytes."""
    body = {"prompt": "x", "background": True, "num_inference_steps": 1}
    made = json.loads((await call(app, scope("POST", IMAGES, JSON), [json.dumps(body).encode()])).content)
    while json.loads((await call(app, scope(path=f"/v1/images/{made['id']}"))).content)["status"] != "completed":
        await asyncio.sleep(0.01)
    [kept] = (data / "files").iterdir()
    kept.write_bytes(b"x" * size)
    return str(made["id"])


def test_a_finished_job_that_is_asked_for_again_and_again_is_never_in_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with service_in(tmp_path) as (app, _):
            name = await job_with(app, 30 * MIB, tmp_path)
            clients = [Stuck(messages=2) for _ in range(20)]
            gc.collect()
            tracemalloc.start()
            asked = [
                asyncio.create_task(app(scope(path=f"/v1/images/{name}"), client.receive, client.send))
                for client in clients
            ]
            while not all(client.seen > 2 for client in clients):
                await asyncio.sleep(0.01)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            assert all(client.longest <= PIECE for client in clients)
            assert most < 20 * 4 * PIECE, "each holds a few pieces, and the file has 30 MiB"

    asyncio.run(main())


def test_the_pieces_are_the_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with service_in(tmp_path) as (app, _):
            name = await job_with(app, MIB + 1, tmp_path)
            answer = await call(app, scope(path=f"/v1/images/{name}"))
            assert len(answer.content) == int(answer.headers["content-length"])
            [picture] = json.loads(answer.content)["result"]["data"]
            assert base64.b64decode(picture["b64_json"]) == b"x" * (MIB + 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (IMAGES, {"prompt": "x"}),
        (IMAGES, {"prompt": "x", "stream": True}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "stream": True}),
    ],
    ids=["picture", "stream", "chat", "chat stream"],
)
def test_a_client_that_goes_while_it_reads_leaves_no_open_file_and_no_spooled_one(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    """An open file that nobody closes is a warning, and warnings are errors."""

    async def main() -> None:
        async with service_in(tmp_path) as (app, service):
            content = json.dumps({**body, "n": 2, "num_inference_steps": 1, "size": "512x512"}).encode()
            for messages in range(8):
                client = Stuck(content, messages)
                asked = asyncio.create_task(app(scope("POST", path, JSON), client.receive, client.send))
                while client.seen <= messages and not asked.done():
                    await asyncio.sleep(0.005)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                assert client.longest <= PIECE
            assert not list(service.files.spool.iterdir())
        gc.collect()

    asyncio.run(main())


def test_a_whole_answer_of_any_route_leaves_in_pieces() -> None:
    async def large(request: Request) -> Response:
        return Response(bytes(range(256)) * 4096 * 3 + b"end")

    app = protect([Route("/large", large)], Rules(Keys.load(None)))
    client = Stuck(messages=100)
    asyncio.run(app(scope(path="/large"), client.receive, client.send))
    assert client.longest == PIECE and client.seen == 1 + 12 + 1
    assert asyncio.run(call(app, scope(path="/large"))).content == bytes(range(256)) * 4096 * 3 + b"end"


class Hasty(Connection):
    """A connection whose client must read at once."""

    stall = 0.4
    period = 0.1


@pytest.mark.parametrize("way", ["close", "keep-alive"])
def test_a_connection_with_an_answer_that_nobody_takes_is_ended(way: str) -> None:
    """The answer fits into no buffer of the kernel; the app is done with it, and only the connection holds the rest."""
    ended = asyncio.Event()

    class Watched(Hasty):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    async def large(request: Request) -> Response:
        return Response(b"x" * (200 * 1024))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with served(protect([Route("/large", large)], Rules(Keys.load(None), stall=0.5)), Watched) as port:
            _reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            head = f"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: {way}\r\n\r\n".encode()
            writer.write(head if way == "close" else head * 40)
            end = loop.time() + 10
            while not ended.is_set() and loop.time() < end:
                await asyncio.sleep(0.05)
            assert ended.is_set()
            writer.transport.abort()

    asyncio.run(main())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with picture_server(tmp_path_factory.mktemp("data")) as running:
        yield running


def test_answers_say_how_long_they_are(server: Running) -> None:
    answer = httpx2.post(server.url + IMAGES, json={"prompt": "x", "n": 2}, timeout=30)
    assert int(answer.headers["content-length"]) == len(answer.content)
