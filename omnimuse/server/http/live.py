"""A WebSocket as its route sees it: events of a client one after the other, and events and sounds to it.

Below the edge (`handshake.py`). A client is always listened to while work goes on for it: only so is it noticed that it
has gone, and then its work is stopped. What it says that makes no sense is told to it, and the rest goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from omnimuse.core.errors import OmnimuseError, RequestCancelled
from omnimuse.server.errors import ApiError, refusal, to_api_error, to_json
from omnimuse.server.http.bodies import parsed
from omnimuse.server.http.strict_json import Draft
from omnimuse.server.http.watch import ClientGone, stop

Event = dict[str, Any]
QUIET = 1001
"""The code that closes a WebSocket on which nothing was said for long."""


class Failing(Protocol):
    """How a protocol tells errors: of `event`, where it is about one."""

    def __call__(self, error: ApiError, event: Event | None = None) -> Event:
        """The event that tells it."""


class Live:
    """An open WebSocket. `failing` makes the events that tell errors."""

    def __init__(self, socket: WebSocket, failing: Failing) -> None:
        self.socket, self._failing = socket, failing
        self._turn = asyncio.Lock()

    def ask(self) -> None:
        """ApiError unless another piece of work may be done for this client now."""
        self.socket.state.ask()

    async def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event; ClientGone if there is nobody any more."""
        async with self._turn:
            await self._send({"type": "websocket.send", "text": to_json(event).decode()})

    async def play(self, pieces: AsyncIterator[bytes]) -> int:
        """Send what `pieces` are together as one message of bytes; how many bytes these were."""
        length = 0
        async with self._turn:
            async for piece in pieces:
                length += len(piece)
                await self._send({"type": "websocket.send", "bytes": piece, "last": False})
            await self._send({"type": "websocket.send", "bytes": b"", "last": True})
        return length

    async def fail(self, error: Exception, event: Event | None = None) -> ApiError:
        """Tell an error, which ends nothing; what was told."""
        told = to_api_error(error)
        await self.tell(self._failing(told, event))
        return told

    async def hold(
        self, work: Coroutine[Any, Any, None], take: Callable[[Event], Awaitable[None]], busy: Callable[[], bool]
    ) -> None:
        """Do `work` and give `take` every event of the client, until one ends; ClientGone when the client goes.

        A client that says nothing for long, while the session is not `busy` for it, is told so and let go.
        """
        reading, working = asyncio.ensure_future(self._read(take, busy)), asyncio.ensure_future(work)
        try:
            await asyncio.wait({reading, working}, return_when=asyncio.FIRST_COMPLETED)
            for task in (working, reading):
                if task.done():
                    task.result()
        finally:
            await stop(reading)
            await stop(working)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it."""
        await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _read(self, take: Callable[[Event], Awaitable[None]], busy: Callable[[], bool]) -> None:
        while True:
            event: Event | None = None
            try:
                if (text := await self._hear(busy)) is None:
                    return
                event = await _read_event(text)
                await take(event)
            except RequestCancelled:  # nobody is left to tell
                raise
            except (ApiError, OmnimuseError) as error:
                await self.fail(error, event)

    async def _hear(self, busy: Callable[[], bool]) -> str | None:
        """The next message; None once the client has been silent for too long."""
        idle = self.socket.state.idle
        while True:
            try:
                async with asyncio.timeout(idle):
                    message = await self.socket.receive()
            except TimeoutError:
                if busy():
                    continue
                await self.fail(refusal("request_timeout", f"nothing was said for {idle:g} s; connect again"))
                await self.close(QUIET, "request_timeout")
                return None
            if message["type"] == "websocket.disconnect":
                raise ClientGone("the client closed the connection")
            if message.get("text") is None:
                raise refusal("invalid_json", "a message of bytes came; send events as text in JSON, sounds in base64")
            return str(message["text"])

    async def _send(self, message: dict[str, Any]) -> None:
        if self.socket.application_state is WebSocketState.DISCONNECTED:
            raise ClientGone("the connection is closed")
        try:
            await self.socket.send(message)
        except WebSocketDisconnect:
            raise ClientGone("the client closed the connection") from None


async def _read_event(text: str) -> Event:
    draft = Draft()
    draft.add(text.encode("utf-8", "surrogatepass"))
    event = await parsed(draft)
    if not isinstance(event.get("type"), str):
        raise refusal("missing_parameter", "an event has a type, as a text; say which it is", "type")
    return event


def live_routes(path: str, session: Callable[[WebSocket], Awaitable[None]]) -> list[BaseRoute]:
    """`path` as a WebSocket and, for who asks for it as for a page, an answer that says so.

    Without the package that a server needs for them there is the answer alone.
    """
    lacking = find_spec("websockets") is None
    how = "this server lacks the package `websockets`; install omnimuse[serve]" if lacking else "connect with ws://"

    async def plain(request: Request) -> Response:
        raise refusal("not_found", f"{path} is a WebSocket: {how}")

    told: list[BaseRoute] = [Route(path, plain, methods=["GET", "POST"])]
    return told if lacking else [WebSocketRoute(path, session), *told]
