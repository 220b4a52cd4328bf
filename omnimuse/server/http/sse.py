"""Answers as server-sent events: progress, previews and results while the work goes on.

Routes give an iterator of events; `EventStream` is the response, or of bytes, which `ByteStream` sends as they are. It
pulls one event at a time, so a slow reader holds back the iterator and nothing piles up here, and it closes it as soon
as the client goes. A client that takes nothing for long is the edge's business: it ends every response that
stalls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omnimuse.server.errors import ApiError, body, on_unexpected_error, to_json
from omnimuse.server.http.enclosed import Parcel
from omnimuse.server.http.watch import stop, until_disconnect

Event = tuple[str | None, Any]
"""A name, or None for none, and a JSON value or a Parcel of one."""
END = b"data: [DONE]\n\n"
ALIVE = b": keep-alive\n\n"


def frame(name: str | None, value: Any) -> bytes:
    """One event as it goes over the wire; `value` becomes one line of JSON."""
    head = b"" if name is None else b"event: " + name.encode("ascii") + b"\n"
    return head + b"data: " + to_json(value) + b"\n\n"


class ByteStream(Response):
    """A response of pieces as they come, of which nobody knows how many; an error of `source` cuts it off."""

    def __init__(self, source: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send pieces until the source ends or the client goes; the source is closed in any case."""
        try:
            await until_gone(receive, self._flow(send))
        finally:
            await self._source.aclose()

    async def _flow(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._source:
            await _write(send, piece)
        await send({"type": "http.response.body", "body": b""})


class EventStream(Response):
    """A response of events; `done` ends it with `data: [DONE]`, as OpenAI's clients expect.

    After `quiet` seconds without an event a comment keeps the connection open. An error of `source` becomes a last
    event named "error". Checks that should answer with a status of their own belong before the response is made: its
    headers are sent at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncIterator[Event],
        done: bool = False,
        headers: Mapping[str, str] | None = None,
        quiet: float = 15.0,
    ) -> None:
        # x-accel-buffering: a proxy such as nginx would hold events back.
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._source, self._done, self._quiet = source, done, quiet
        self._failed, self._name = False, "a stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the source ends or the client goes; the source is closed in any case."""
        self._name = f"request {scope.get('state', {}).get('request_id', '')}"
        try:
            await until_gone(receive, self._flow(send))
        finally:
            if isinstance(self._source, AsyncGenerator):
                await self._source.aclose()

    async def _flow(self, send: Send) -> None:
        """The whole response: events, with comments between those that are far apart."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        following = asyncio.ensure_future(self._next())
        try:
            while True:
                await asyncio.wait({following}, timeout=self._quiet)
                if not following.done():
                    await _write(send, ALIVE)
                    continue
                if (event := following.result()) is None:
                    break
                if isinstance(event[1], Parcel):  # its files are the source's, which closes them when it goes on
                    async for piece in event[1].files.pieces(frame(event[0], event[1].value)):
                        await _write(send, piece)
                    following = asyncio.ensure_future(self._next())
                else:
                    following = asyncio.ensure_future(self._next())
                    await _write(send, frame(*event))
        finally:
            await stop(following)
        if self._done and not self._failed:
            await _write(send, END)
        await send({"type": "http.response.body", "body": b""})

    async def _next(self) -> Event | None:
        """The next event; None at the end. An error is an event, and the last one."""
        if self._failed:
            return None
        found: list[Event | None] = []

        async def pull() -> None:
            found.append(await anext(self._source, None))

        async def tell(error: ApiError) -> None:
            self._failed = True
            found.append(("error", {"type": "error", **body(error)}))

        await on_unexpected_error(pull, tell, self._name)
        return found[0]


async def until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, as long as the client is there."""
    gone, flow = asyncio.ensure_future(until_disconnect(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, flow}, return_when=asyncio.FIRST_COMPLETED)
        if flow.done():
            flow.result()
    finally:
        await stop(gone)
        await stop(flow)


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})
