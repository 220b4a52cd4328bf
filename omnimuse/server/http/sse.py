"""Answers as server-sent events: progress, previews and results while the work goes on.

Routes give an iterator of events; `EventStream` is the response, or of bytes, which `ByteStream` sends as they are. It
pulls one event at a time, so a slow reader holds back the iterator and nothing piles up here, and it closes it as soon
as the client goes. A client that takes nothing for long is the edge's business: it ends every response that
stalls.
A stream has many events for each request, so what is done for one is little: no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omnimuse.server.errors import ApiError, body, to_json, tried
from omnimuse.server.http.enclosed import Parcel
from omnimuse.server.http.pieces import begin, end, write
from omnimuse.server.http.watch import stop, until_disconnect

Event = tuple[str | None, Any]
"""A name, or None for none, and a JSON value, or a Parcel or the Text of one."""
END = b"data: [DONE]\n\n"
ALIVE = b": keep-alive\n\n"


class Text(bytes):
    """A JSON value, written down already."""


class Pattern:
    """JSON values that differ in one text alone: what they share is written down once."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        """`make` gives the value that has a certain text in it, once or more often."""
        word = secrets.token_hex(16)
        self._parts = to_json(make(word)).split(to_json(word))

    def filled(self, text: str) -> Text:
        """The value with `text` in it."""
        return Text(to_json(text).join(self._parts))


def frame(name: str | None, value: Any) -> bytes:
    """One event as it goes over the wire; `value` becomes one line of JSON."""
    head = b"" if name is None else b"event: " + name.encode("ascii") + b"\n"
    return head + b"data: " + (value if isinstance(value, Text) else to_json(value)) + b"\n\n"


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
        await begin(self, send)
        async for piece in self._source:
            await write(send, piece)
        await end(send)


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
        self._told, self._writing = time.monotonic(), asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the source ends or the client goes; the source is closed in any case."""
        self._name = f"request {scope.get('state', {}).get('request_id', '')}"
        try:
            await until_gone(receive, self._flow(send), self._comment(send))
        finally:
            if isinstance(self._source, AsyncGenerator):
                await self._source.aclose()

    async def _flow(self, send: Send) -> None:
        """The whole response but for comments."""
        async with self._writing:
            await begin(self, send)
        while (event := await self._next()) is not None:
            async with self._writing:
                await self._write(send, event)
        await self._writing.acquire()  # no comment comes behind the end
        if self._done and not self._failed:
            await write(send, END)
        await end(send)

    async def _next(self) -> Event | None:
        """The next event; None at the end. An error is an event, and the last one."""
        if self._failed:
            return None
        found = await tried(anext(self._source, None), self._name)
        if isinstance(found, ApiError):
            self._failed = True
            return "error", {"type": "error", **body(found)}
        return found

    async def _write(self, send: Send, event: Event | None) -> None:
        """Send an event, or, for None, a comment."""
        if event is None:
            await write(send, ALIVE)
        elif isinstance(event[1], Parcel):  # its files are the source's, which closes them when it goes on
            async for piece in event[1].files.pieces(frame(event[0], event[1].value)):
                await write(send, piece)
        else:
            await write(send, frame(*event))
        self._told = time.monotonic()

    async def _comment(self, send: Send) -> None:
        """Send comments between events that are far apart, for ever."""
        while True:
            await asyncio.sleep(self._told + self._quiet - time.monotonic())
            async with self._writing:
                if time.monotonic() - self._told >= self._quiet:
                    await self._write(send, None)


async def until_gone(receive: Receive, *work: Coroutine[Any, Any, None]) -> None:
    """Do all of `work` until something of it is done, as long as the client is there."""
    tasks = [asyncio.ensure_future(each) for each in (*work, until_disconnect(receive))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            await stop(task)
