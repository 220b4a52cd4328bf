"""A kept file as an HTTP response: whole or one range of it, resumable, never more than a chunk in memory.

Routes call `download`. The file is opened before anything is sent, so a response that has begun is not cut short when
the file is removed. Several ranges in one request are refused: answering them costs far more than asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from omnimuse.server.errors import CODES, ApiError
from omnimuse.server.http.pieces import begin, end, write

MEDIA = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "mp4": "video/mp4",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "pcm": "audio/pcm",
}
"""Suffix of a result (its format in small letters) -> its media type."""
CHUNK = 256 * 1024
_DIGITS = 18  # of a position: more is beyond any file


async def download(request: Request, path: Path, name: str, tag: str, inline: bool = False) -> Response:
    """The file at `path` as a response to GET or HEAD; its suffix tells what it is.

    `name` is what it is called when saved, `tag` its strong validator. `inline` is for what a browser shows by a link
    that never leads to anything else. FileNotFoundError when it is gone; ApiError 416 for a range outside of it.
    """
    etag, way = f'"{tag}"', "inline" if inline else "attachment"
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "cache-control": "private, immutable" if inline else "private, no-cache",
    }
    if etag in [given.strip() for given in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    headers |= {"content-type": MEDIA[path.suffix[1:]], "content-disposition": f'{way}; filename="{name}"'}
    file = await asyncio.to_thread(path.open, "rb")
    try:
        size = await asyncio.to_thread(file.seek, 0, 2)
        part = None
        if request.headers.get("if-range", etag) == etag:
            part = find_range(request.headers.get("range", ""), size)
        first, last = part or (0, size - 1)
        if part is not None:
            headers["content-range"] = f"bytes {first}-{last}/{size}"
        headers["content-length"] = str(last - first + 1)
        await asyncio.to_thread(file.seek, first)
    except BaseException:
        file.close()
        raise
    return Sent(file, last - first + 1, 200 if part is None else 206, headers)


def find_range(header: str, size: int) -> tuple[int, int] | None:
    """The first and the last byte that a Range header asks for; None if it is to be ignored (RFC 9110, 14.2).

    ApiError 416 for several ranges, or one that begins behind the end.
    """
    unit, _, wanted = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    if "," in wanted:
        raise _unsatisfiable("one request can ask for one range; send several requests", size)
    low, dash, high = (part.strip() for part in wanted.partition("-"))
    if not dash or not (low or high) or not all(_is_position(text) for text in (low, high) if text):
        return None
    if not low:  # the last so many bytes
        first, last = max(0, size - int(high)), size - 1
    else:
        first, last = int(low), min(int(high), size - 1) if high else size - 1
        if high and int(high) < int(low):
            return None
    if first >= size:
        raise _unsatisfiable(f"the file has {size} bytes; ask for a range within them", size)
    return first, last


def _is_position(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _unsatisfiable(message: str, size: int) -> ApiError:
    known = CODES["invalid_range"]
    return ApiError(known.status, known.type, "invalid_range", message, "range", {"content-range": f"bytes */{size}"})


class Sent(Response):
    """`length` bytes of an open file from where it stands; the file is closed at the end."""

    def __init__(self, file: BinaryIO, length: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status_code=status)
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._file, self._left = file, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; only the head where that was asked for."""
        try:
            await begin(self, send)
            if scope["method"] == "HEAD":
                self._left = 0
            while self._left:
                chunk = await asyncio.to_thread(self._file.read, min(CHUNK, self._left))
                if not chunk:
                    raise OSError("a kept file is shorter than it was")
                self._left -= len(chunk)
                await write(send, chunk)
            await end(send)
        finally:
            self._file.close()
