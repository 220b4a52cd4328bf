"""One TCP connection of a client, for uvicorn: `uvicorn.Config(http=Connection)`.

uvicorn's own, with what no ASGI app can do: it is read in pieces that keep nobody waiting, whatever the client owes has
a time, what is no HTTP is answered in our JSON, there are no more connections than allowed, and the edge can close one
at once, unsent bytes and all (`request.state.abort`). At a path that has WebSockets it becomes one (`frames.py`) where
the client asks for it; anywhere else such a request is an ordinary one.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Collection
from functools import partial
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from omnimuse.server.errors import ApiError, body, refusal, to_json
from omnimuse.server.http.reading import Reading

HEADER_PATIENCE = 20.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers; and for the rest of a
body that was answered before it came."""
IDLE_PATIENCE = 75.0
"""Seconds that a connection without a request is kept."""
STALL = 30.0
"""Seconds in which a client takes the next `_STRETCH` bytes of what was written for it."""
_STRETCH = 16 * 1024
_HEAD = 64 * 1024  # bytes of a head that is not complete
_SMALL, _LARGE = 4 * 1024, 64 * 1024  # bytes that are read at once: of anything, and of a body of known length


class Crowd:
    """Who is connected: at most `most` connections in all, and `each` of one address."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._here: Counter[str] = Counter()
        self._count = 0

    def enter(self, address: str) -> ApiError | None:
        """Count a connection; the refusal if it is one too many."""
        self._here[address] += 1
        self._count += 1
        if self._count > self._most:
            return refusal("too_many_connections", f"the server has {self._most} connections and takes no more")
        if self._here[address] > self._each:
            return refusal("too_many_connections", f"your address has {self._each} connections and gets no more")
        return None

    def leave(self, address: str) -> None:
        """A connection has ended."""
        self._count -= 1
        self._here[address] -= 1
        if not self._here[address]:
            del self._here[address]


class Connection(H11Protocol, asyncio.BufferedProtocol):  # buffered: only so does asyncio let us say how much to read
    """A client's connection."""

    header_patience = HEADER_PATIENCE
    idle_patience = IDLE_PATIENCE
    stall = STALL
    period = 2.5
    """Seconds between looks at whether the client is late."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        crowd: Crowd | None = None,
        live: Collection[str] = (),
    ) -> None:
        """Called by uvicorn; `crowd`, and the paths that have WebSockets, come with `functools.partial`."""
        super().__init__(config, server_state, app_state, _loop)
        self._live = live
        self.conn: Reading = Reading(_HEAD)
        self._crowd = crowd
        self._buffer = bytearray(_SMALL)
        self._timer: asyncio.TimerHandle | None = None
        self._owed: tuple[object, ...] | None = None
        self._since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio. What is in `app_state` becomes `scope["state"]` of every request."""
        self.app_state = {**self.app_state, "abort": transport.abort}
        super().connection_made(transport)
        _give_up_on_the_gone(transport)
        self._since = self.loop.time()
        self._look()
        if self._crowd is not None and (error := self._crowd.enter(self._address)) is not None:
            self._refuse(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by asyncio: where to put what comes, and how much. Never more than belongs to the body under way."""
        size = _SMALL if self.conn.left < _SMALL else min(_LARGE, self.conn.left)
        if len(self._buffer) < size or (size == _SMALL and len(self._buffer) > _SMALL):
            self._buffer = bytearray(_SMALL if size == _SMALL else _LARGE)
        return memoryview(self._buffer)[:size]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by asyncio when something came."""
        self.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, last."""
        super().connection_lost(exc)
        self._leave()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._crowd is not None:
            self._crowd.leave(self._address)

    def send_400_response(self, msg: str) -> None:
        """Called for what is no HTTP; the connection is of no further use."""
        self._refuse(refusal("invalid_request", "this is no HTTP/1.1 request that can be read; check the client"))

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() == b"websocket" and self.scope["path"] in self._live

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Called for a client that asks for a WebSocket where there is one: from now on, it is that."""
        from omnimuse.server.http.frames import Frames

        if self._timer is not None:
            self._timer.cancel()
        self.ws_protocol_class = partial(Frames, leave=self._leave)  # type: ignore[assignment]
        super().handle_websocket_upgrade(event)

    def _refuse(self, error: ApiError) -> None:
        """Answer with `error` where that is still possible, and close. Who waits for the rest of the body is told."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        content = to_json(body(error))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "connection": "close",
            "x-request-id": secrets.token_hex(16),
            **error.headers,
        }
        head = h11.Response(status_code=error.status, headers=list(headers.items()), reason=b"Refused")
        for event in (head, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _look(self) -> None:
        """Close the connection if its client has owed the same for too long; look again later."""
        owed, patience = self._find_owed()
        if owed is None or owed != self._owed:
            self._owed, self._since = owed, self.loop.time()
        elif self.loop.time() - self._since >= patience:
            self.transport.abort()
            return
        self._timer = self.loop.call_later(self.period, self._look)

    def _find_owed(self) -> tuple[tuple[object, ...] | None, float]:
        """What only the client can bring about, and how long it may take; None while a request is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        if self.transport.is_closing() or (unsent and not answering):
            return ("take", -(-unsent // _STRETCH)), self.stall
        if answering:  # the edge minds the body, and a reader who does not read
            return None, 0.0
        if self.conn.their_state is h11.IDLE and self.conn.requests and not self.conn.begun:
            return ("ask", self.conn.requests), self.idle_patience
        return ("send", self.conn.requests), self.header_patience


def _give_up_on_the_gone(transport: asyncio.Transport) -> None:
    """Let the kernel end a connection whose other side acknowledges nothing: nobody else would notice for long."""
    found = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2 * STALL * 1000))
