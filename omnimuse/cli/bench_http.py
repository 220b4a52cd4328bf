"""A small HTTP/1.1 client on asyncio streams, for `omnimuse bench`: a connection for every request, and an answer that
is read whole or event by event. No library beyond Python's own.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from omnimuse.core.errors import RequestError


@dataclass(frozen=True)
class Target:
    """Where the server is; `prefix` is the path up to and including /v1."""

    host: str
    port: int
    prefix: str = "/v1"
    secure: bool = False
    key: str = ""

    @staticmethod
    def read(url: str, key: str) -> Target:
        """The server at `url`, with or without the /v1; RequestError if that is no http or https address."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme not in ("http", "https"):
            raise RequestError(f"--url {url} is not an address; write it like http://127.0.0.1:8000", "url")
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/")
        return Target(
            host, port or (443 if secure else 80), path if path.endswith("/v1") else f"{path}/v1", secure, key
        )

    @property
    def authority(self) -> str:
        """Host and port, as in an address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.prefix}"


class Answer:
    """An answer whose head has come; its body is read once, by `read` or `events`."""

    def __init__(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.status, self.headers, self._reader = status, headers, reader

    @property
    def retry_after(self) -> float:
        """Seconds after which to try again, 1 where nothing is said."""
        with suppress(ValueError):
            return min(120.0, max(0.0, float(self.headers.get("retry-after", 1.0))))
        return 1.0

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([part async for part in self._parts()])

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event; comments and names are left out."""
        data: list[bytes] = []
        async for line in self._lines():
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []

    async def _lines(self) -> AsyncIterator[bytes]:
        rest = bytearray()
        async for part in self._parts():
            looked = len(rest)
            rest += part
            while (end := rest.find(b"\n", looked)) >= 0:
                yield bytes(rest[:end]).rstrip(b"\r")
                del rest[: end + 1]
                looked = 0

    async def _parts(self) -> AsyncIterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._line()).split(b";")[0], 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            return
        said = self.headers.get("content-length")
        left = None if said is None else int(said)
        while left is None or left > 0:
            part = await self._reader.read(2**16 if left is None else min(left, 2**16))
            if not part and left is not None:
                raise EOFError(f"the answer broke off {left} bytes before its end")
            if not part:
                return
            left = None if left is None else left - len(part)
            yield part

    async def _line(self) -> bytes:
        line = await self._reader.readline()
        if not line:
            raise EOFError("the answer broke off between two chunks")
        return line


@asynccontextmanager
async def exchange(
    target: Target, method: str, path: str, body: bytes, headers: dict[str, str]
) -> AsyncIterator[Answer]:
    """Send a request over a connection of its own and give its answer, whose body is still to be read.

    OSError, EOFError or ValueError if there is no answer, or none in HTTP.
    """
    context = ssl.create_default_context() if target.secure else None
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    try:
        head = {"host": target.authority, "connection": "close", "content-length": str(len(body))}
        if target.key:
            head["authorization"] = f"Bearer {target.key}"
        lines = [f"{method} {target.prefix}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in (head | headers).items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        yield await _read_head(reader)
    finally:
        writer.transport.abort()  # the answer has been read, or is not wanted; there is nothing left to say
        with suppress(OSError):
            await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    status = 100
    while 100 <= status < 200:  # interim answers say nothing yet
        words = (await reader.readline()).split(maxsplit=2)
        if not words:
            raise EOFError("the server closed the connection without an answer")
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            raise ValueError("the answer is not HTTP")
        status = int(words[1])
        headers = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
    return Answer(status, headers, reader)
