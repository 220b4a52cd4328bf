"""HTTP as h11 reads it, with a bound on the work that a few bytes can make.

`server/http/connections.py` uses `Reading` in place of h11's own connection: heads of thousands of lines and bodies in
thousands of tiny chunks are refused before they are taken apart, so is a body that ends in two places, and it is told
how much of a body is still to come.
"""

from __future__ import annotations

import re
from typing import Any

import h11

MAX_LINES = 256
"""Lines of a request's head; the edge allows far fewer headers and says so in our words."""
FREE_CHUNKS, SMALLEST = 4096, 256
"""Chunks of a body that may be as small as their sender likes, and the bytes that those behind them have on average."""
_END_OF_HEAD = re.compile(rb"\n\r?\n")


class Reading(h11.Connection):
    """The server's side of one connection."""

    def __init__(self, most: int) -> None:
        """`most` bytes of a head, or of the line of a chunk, are waited for."""
        super().__init__(h11.SERVER, most)
        self.requests = 0
        """Heads that were read so far."""
        self.begun = False
        """Whether some of a head has come that is not complete."""
        self.left = 0
        """Bytes of a body of known length that have not come yet; 0 for one in chunks."""
        self._lines, self._tail = 0, b""
        self._chunked, self._chunks, self._length = False, 0, 0

    def receive_data(self, data: bytes) -> None:
        """Take what came from the client."""
        if self.their_state is h11.IDLE and data:
            self.begun = True
            known = self._tail.count(b"\n")
            seen = self._tail + data
            end = _END_OF_HEAD.search(seen)
            self._lines += (seen.count(b"\n") if end is None else seen.count(b"\n", 0, end.end())) - known
            self._tail = seen[-2:]
        super().receive_data(data)

    def next_event(self) -> Any:
        """As h11 has it; RemoteProtocolError for what costs far more to read than to send."""
        if self._lines > MAX_LINES:
            raise h11.RemoteProtocolError(f"a head of more than {MAX_LINES} lines", 431)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self.left = max(0, self.left - len(event.data))
            self._length += len(event.data)
            self._chunks += self._chunked
            if self._chunks > FREE_CHUNKS + self._length // SMALLEST:
                raise h11.RemoteProtocolError("a body in too many tiny chunks", 400)
        elif isinstance(event, h11.EndOfMessage):
            self.left = 0
        return event

    def _begin(self, request: h11.Request) -> None:
        found = dict(request.headers)
        self._chunked = b"transfer-encoding" in found
        if self._chunked and (b"content-length" in found or request.http_version < b"1.1"):
            # A proxy in front may have read it the other way: what it took for a body would be the next request.
            raise h11.RemoteProtocolError("a body that ends in two places", 400)
        self.left = 0 if self._chunked else int(found.get(b"content-length", b"0"))
        self.requests += 1
        self.begun, self._lines, self._tail = False, 0, b""
        self._chunks = self._length = 0
