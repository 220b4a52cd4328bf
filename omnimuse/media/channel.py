"""A socket to another process, read and written on an event loop, each for itself."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

LINE = 2**14  # bytes of a line at most
_PIECE = 2**18  # bytes that are moved at once


class Channel:
    """Our end of a socket whose other end may answer and go before it has read everything.

    Writing that fails leaves what can still be read. A stream of asyncio would not do: its first failed write throws
    away what has come and was not read yet.
    """

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._socket, self._come = ours, b""

    async def write(self, content: bytes) -> None:
        """Send it; what the other end does not want, or no longer can take, is dropped."""
        view = memoryview(content)
        with suppress(ConnectionError):
            for start in range(0, len(view), _PIECE):
                await asyncio.get_running_loop().sock_sendall(self._socket, view[start : start + _PIECE])

    async def line(self) -> bytes:
        """Up to a newline, the end, or a little more than `LINE` bytes."""
        while b"\n" not in self._come and len(self._come) < LINE and await self._more(LINE):
            pass
        line, newline, self._come = self._come.partition(b"\n")
        return line + newline

    async def exactly(self, length: int) -> bytes | None:
        """`length` bytes; None if the other end ends before."""
        pieces, held = [self._come], len(self._come)
        self._come = b""
        while held < length and await self._more(min(length - held, _PIECE)):
            pieces.append(self._come)
            held, self._come = held + len(self._come), b""
        return b"".join(pieces)[:length] if held >= length else None

    def close(self) -> None:
        """Give the socket back; nobody may be reading or writing."""
        self._socket.close()

    async def _more(self, most: int) -> bool:
        try:
            piece = await asyncio.get_running_loop().sock_recv(self._socket, most)
        except ConnectionError:  # it ended and left unread what we gave it
            return False
        self._come += piece
        return bool(piece)
