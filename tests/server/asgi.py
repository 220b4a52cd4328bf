"""Raw ASGI calls for tests of the server: a request as data, the answer as data, no socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message


@dataclass
class Answer:
    """What an app sent; `status` 0 means nothing."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    whole: bool = False

    @property
    def error(self) -> dict[str, Any]:
        """The error in a JSON body."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.content)["error"]


def scope(
    method: str = "GET", path: str = "/", headers: dict[str, str] | None = None, query: str = ""
) -> dict[str, Any]:
    """An HTTP scope; Host is localhost unless `headers` say otherwise."""
    named = {"host": "localhost:8000", **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()],
        "http_version": "1.1",
        "scheme": "http",
        "state": {},
    }


class Client:
    """Receives what the app sends and gives it `chunks`, then waits: a client that stays until `leave` is set."""

    def __init__(self, chunks: Iterable[bytes] = (b"",), unfinished: bool = False) -> None:
        self.answer, self.leave, self.taken = Answer(), asyncio.Event(), 0
        self._chunks, self._unfinished = list(chunks), unfinished

    async def receive(self) -> Message:
        if self.taken < len(self._chunks):
            chunk = self._chunks[self.taken]
            self.taken += 1
            more = self._unfinished or self.taken < len(self._chunks)
            return {"type": "http.request", "body": chunk, "more_body": more}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert self.answer.status == 0, "the response began twice"
            self.answer.status = message["status"]
            self.answer.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.answer.content += message.get("body", b"")
            self.answer.whole = not message.get("more_body", False)


async def call(app: ASGIApp, asked: dict[str, Any], chunks: Iterable[bytes] = (b"",)) -> Answer:
    """The whole answer of `app` to one request."""
    client = Client(chunks)
    await app(asked, client.receive, client.send)
    return client.answer


def request_with(content: bytes, kind: str | None, pieces: int = 7) -> Request:
    """A POST with `content` in chunks of `pieces` bytes, declared as `kind`."""
    chunks = [content[at : at + pieces] for at in range(0, len(content), pieces)] or [b""]
    headers = {} if kind is None else {"content-type": kind}
    return Request(scope("POST", "/", headers), Client(chunks).receive)
