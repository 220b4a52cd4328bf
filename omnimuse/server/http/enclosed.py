"""Finished files inside the JSON of an answer: read while the answer is sent, a piece at a time.

Routes open files (`Enclosed`), write the words that stand for them into their JSON, and answer with `JSONWithFiles`, or
put a `Parcel` into a stream of events. However many answers wait for a slow reader, each holds a piece in memory and a
file that is open; a file that is removed meanwhile is still sent whole.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omnimuse.server.errors import to_json
from omnimuse.server.http.pieces import begin, end, write

PIECE = 3 * 64 * 1024
"""Bytes of a file that are read at once: a multiple of three, which base64 makes four characters of."""

_WORD = re.compile(rb"(file-[0-9a-f]{32}-\d+\.)")
"""What looks like a word of `Enclosed`."""


class Enclosed:
    """Open files, and for each a word that stands for it in JSON: its content in base64 takes the place of the word."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        """Nobody can guess the words, so no text of a client is ever taken for one. The files are closed by `close`."""
        secret = secrets.token_hex(16)
        self.words = [f"file-{secret}-{number}." for number in range(len(files))]
        self._files = dict(zip((word.encode() for word in self.words), files, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; closing again does nothing."""
        for file in self._files.values():
            file.close()

    async def length(self, text: bytes) -> int:
        """The bytes of `text` with the files in the place of their words."""
        sizes = await asyncio.to_thread(lambda: {word: file.seek(0, 2) for word, file in self._files.items()})
        parts = _WORD.split(text)
        return sum(4 * ((sizes[part] + 2) // 3) if part in sizes else len(part) for part in parts)

    async def pieces(self, text: bytes) -> AsyncIterator[bytes]:
        """`text` with the files in the place of their words."""
        for part in _WORD.split(text):
            file = self._files.get(part)
            if file is None:
                yield part
                continue
            await asyncio.to_thread(file.seek, 0)
            while content := await asyncio.to_thread(file.read, PIECE):
                yield base64.b64encode(content)


@dataclass(frozen=True)
class Parcel:
    """The value of an event of a stream, with the files that its words stand for."""

    value: Any
    files: Enclosed


class JSONWithFiles(Response):
    """An answer in JSON that has files in it; they are closed when it has been sent, or cannot be."""

    media_type = "application/json"

    def __init__(self, value: Any, files: Enclosed, headers: Mapping[str, str] | None) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._text, self._enclosed = to_json(value), files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._enclosed:
            self.headers["content-length"] = str(await self._enclosed.length(self._text))
            await begin(self, send)
            async for piece in self._enclosed.pieces(self._text):
                await write(send, piece)
            await end(send)
