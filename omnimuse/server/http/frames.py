"""A connection that has become a WebSocket: uvicorn's, over the package `websockets`, with what no ASGI app can do.

`connections.py` makes one where a client asks for it at a path that has one. A message of many bytes can leave in
pieces, so that it is never in memory as a whole; and what a client may leave unfinished is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame

MOST_FRAMES = 1024
"""Frames that one message of a client may come in: each takes memory, empty ones, too."""


class Frames(WebSocketsSansIOProtocol):
    """A client's WebSocket; `leave` is called when it has ended."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        leave: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._leave, self._within = leave, False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, last."""
        super().connection_lost(exc)
        self._leave()

    def handle_cont(self, event: Frame) -> None:
        """Called for the next frame of a message."""
        if len(self.frames) < MOST_FRAMES:
            super().handle_cont(event)
            return
        self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"a message of more than {MOST_FRAMES} frames")
        self.handle_parser_exception()

    async def send(self, message: Any) -> None:
        """As ASGI has it; bytes whose message says `last` are a piece of one, which ends where it is true."""
        if "last" not in message:
            await super().send(message)
            return
        await self.writable.wait()
        if self.disconnected:
            raise ClientDisconnected
        add = self.conn.send_continuation if self._within else self.conn.send_binary
        try:
            add(message["bytes"], fin=message["last"])
        except InvalidState:
            raise ClientDisconnected from None
        self._within = not message["last"]
        self.transport.write(b"".join(self.conn.data_to_send()))
