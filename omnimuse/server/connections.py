"""One TCP connection of a client, for uvicorn: `uvicorn.Config(http=Connection)`.

uvicorn's own, with three things that no ASGI app can do: headers that do not come are not waited for, what is no HTTP
is answered in our JSON, and the edge can close a connection at once, unsent bytes and all (`request.state.abort`).
"""

from __future__ import annotations

import asyncio
import secrets

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from omnimuse.server.errors import body, refusal, to_json

HEADER_PATIENCE = 20.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers."""


class Connection(H11Protocol):
    """A client's connection."""

    header_patience = HEADER_PATIENCE
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio. What is in `app_state` becomes `scope["state"]` of every request."""
        self.app_state = {**self.app_state, "abort": transport.abort}
        super().connection_made(transport)
        self._mind_headers()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with what the client sent."""
        super().data_received(data)
        self._mind_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio, last."""
        super().connection_lost(exc)
        self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Called for what is no HTTP; the connection is of no further use."""
        error = refusal("invalid_request", "this is no HTTP/1.1 request that can be read; check the client")
        content = to_json(body(error))
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "connection": "close",
            "x-request-id": secrets.token_hex(16),
            **error.headers,
        }
        head = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
        for event in (head, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _mind_headers(self) -> None:
        """Keep a timer while a request is due and its headers are not complete."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_patience, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
