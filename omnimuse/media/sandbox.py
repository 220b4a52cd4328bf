"""Pictures from strangers, decoded in a process that may die of them.

The server's front process asks `Sandbox`, which starts `python -m omnimuse.media.sandbox` for each picture: a child
with little memory and time, no environment, and, once it has its libraries, no way to open a file or a socket. PNG,
JPEG and WEBP by their first bytes only. What comes back is a PNG of our own, checked before it is believed. Animations
give their first frame, EXIF turns the picture, transparency lies over white, and colour profiles are ignored: numbers
are taken as sRGB. Nothing here imports Pillow except the child.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import struct
import sys
import zlib
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omnimuse.core.errors import CapacityError, RequestError
from omnimuse.core.request import Picture

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["PNG", "JPEG", "WEBP"]

COMMAND = (sys.executable, "-P", "-m", "omnimuse.media.sandbox")
MEMORY = 2**30  # bytes of address space of a child
CPU = 15  # seconds of computation of a child
WAITING = 64  # pictures that wait for their turn; more are refused
_ROOM = 2**20  # bytes of an answer beside its pixels
_PIECE = 2**18  # bytes
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class PictureLimits:
    """What is decoded, and how much is kept of it.

    A file says its size in its first bytes: more than `max_pixels`, or a longer side than `max_side`, is not decoded
    (of WEBP, which takes twice the memory, half as many). A picture of more than `keep_pixels` is scaled down to them.
    """

    max_pixels: int = 64_000_000
    max_side: int = 16_384
    keep_pixels: int = 4_000_000


class PictureError(RequestError):
    """A picture that is not taken; `code` is "invalid_image" or "image_too_large"."""

    def __init__(self, message: str, code: str = "invalid_image") -> None:
        super().__init__(message, "image")
        self.code = code


def kind_of(content: bytes) -> Kind | None:
    """The format that the first bytes announce, if it is one that is read."""
    if content.startswith(_PNG):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


class Sandbox:
    """Decodes pictures in children, `together` at once, each within `seconds`. Lives on one event loop.

    After the first picture one child is kept ready for the next: a child sees one picture and ends.
    """

    def __init__(self, together: int = 2, seconds: float = 20.0, command: tuple[str, ...] = COMMAND) -> None:
        self._seconds, self._command = seconds, command
        self._room, self._starting = asyncio.Semaphore(together), asyncio.Lock()
        self._spare: Process | None = None
        self._waiting = 0
        self._closed = False

    async def decode(self, content: bytes, limits: PictureLimits | None = None) -> Picture:
        """The picture in `content`; PictureError if it is none, or too large. Cancelling ends the child.

        CapacityError when too many pictures wait, or no child can be started.
        """
        limits = limits or PictureLimits()
        if kind_of(content) is None:
            what = "is empty" if not content else "is no PNG, JPEG or WEBP file by its first bytes"
            raise PictureError(f"the picture {what}; send one of these formats")
        if self._waiting >= WAITING:
            raise CapacityError("too many pictures wait to be read; try again later", 2.0)
        self._waiting += 1
        try:
            async with self._room:
                answer = await self._ask(content, limits)
        finally:
            self._waiting -= 1
        await self._prepare()
        return _believed(answer, limits)

    async def close(self) -> None:
        """End the child that is kept ready; no picture is read afterwards with its help."""
        self._closed = True
        async with self._starting:
            spare, self._spare = self._spare, None
        if spare is not None:
            await _end(spare)

    async def _ask(self, content: bytes, limits: PictureLimits) -> bytes:
        """What a child says of `content`; nothing if it died or was too slow."""
        spare, self._spare = self._spare, None
        child = spare if spare is not None and spare.returncode is None else await self._start()
        head = json.dumps(asdict(limits)).encode() + b"\n"
        try:
            async with asyncio.timeout(self._seconds):
                _, answer = await asyncio.gather(_give(child, head, content), _take(child, limits))
            return answer
        except TimeoutError:
            return b""
        finally:
            await _end(child)

    async def _prepare(self) -> None:
        async with self._starting:
            if self._spare is None and not self._closed:
                self._spare = await self._start()

    async def _start(self) -> Process:
        package = Path(__file__).parents[2]
        env = {"PYTHONPATH": str(package), "OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}  # and no secrets
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=env, cwd="/", start_new_session=True
            )
        except OSError:
            raise CapacityError("the server cannot start another process now; try again later", 5.0) from None


async def _give(child: Process, head: bytes, content: bytes) -> None:
    assert child.stdin is not None
    with suppress(ConnectionError):  # it has seen enough, or died
        child.stdin.write(head)
        for start in range(0, len(content), _PIECE):  # in pieces: what waits to be written is a copy
            child.stdin.write(content[start : start + _PIECE])
            await child.stdin.drain()
        child.stdin.close()
        await child.stdin.wait_closed()


async def _take(child: Process, limits: PictureLimits) -> bytes:
    assert child.stdout is not None
    found, most = bytearray(), 4 * limits.keep_pixels + _ROOM
    while chunk := await child.stdout.read(2**16):
        found += chunk
        if len(found) > most:  # no child of ours says so much
            return b""
    return bytes(found)


async def _end(child: Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):  # not child.kill(): it may take the exit status from those who wait for it
            os.killpg(child.pid, signal.SIGKILL)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.close()
    with suppress(ConnectionError):
        await child.stdin.wait_closed()
    while await child.stdout.read(2**16):  # to its end, so that the pipe is closed
        pass
    await child.wait()


def _believed(answer: bytes, limits: PictureLimits) -> Picture:
    """The picture that a child made. Who took over a child could say anything: only a plain RGB PNG is believed."""
    word, _, png = answer.partition(b"\n")
    if word == b"large":
        raise PictureError(
            f"the picture is too large; send at most {limits.max_pixels / 1e6:g} megapixels (as WEBP half as many) and "
            f"{limits.max_side} pixels a side",
            "image_too_large",
        )
    size = _size_of(png) if word == b"ok" else None
    if size is None or size[0] * size[1] > limits.keep_pixels:
        raise PictureError("the picture cannot be read: its file is damaged or incomplete; save it anew and send that")
    return Picture(size[0], size[1], png)


def _size_of(png: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG of 8-bit RGB that holds pixels and nothing else; None for any other bytes."""
    if not png.startswith(_PNG):
        return None
    names, at, head = [], len(_PNG), b""
    while at + 12 <= len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        end = at + 12 + length
        if end > len(png) or struct.unpack(">I", png[end - 4 : end])[0] != zlib.crc32(png[at + 4 : end - 4]):
            return None
        head = head or png[at + 8 : end - 4]
        names.append(name)
        at = end
    whole = names[:1] == [b"IHDR"] and names[-1:] == [b"IEND"] and set(names[1:-1]) == {b"IDAT"}
    if not whole or at != len(png) or len(head) != 13 or head[8:] != b"\x08\x02\0\0\0":
        return None
    width, height = struct.unpack(">II", head[:8])
    return (width, height) if width and height else None


# -- the child -----------------------------------------------------------------------------------------------


class _TooLarge(Exception):
    pass


def _decoded(content: bytes, limits: PictureLimits) -> Picture:
    """The picture in `content`. Any exception but _TooLarge means that it is none."""
    from PIL import Image

    from omnimuse.media.picture import picture_of

    kind = kind_of(content)
    most = limits.max_pixels // (2 if kind == "WEBP" else 1)
    with Image.open(io.BytesIO(content), formats=[str(kind)]) as image:
        if image.width * image.height > most or max(image.size) > limits.max_side:
            raise _TooLarge
        return picture_of(_reduced(image, limits))


def _reduced(image: Image.Image, limits: PictureLimits) -> Image.Image:
    """`image` with at most `keep_pixels` pixels, in a mode that can be scaled and shown."""
    from PIL import Image

    scale = min(1.0, (limits.keep_pixels / (image.width * image.height)) ** 0.5)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    image.draft("RGB", size)  # a JPEG is decoded no larger than needed; others take no notice
    if image.mode.startswith("I"):  # 16 bits of grey, of which 8 are kept
        grey = image.convert("I").point(lambda value: value * (1 / 256))
        grey.info = image.info
        image = grey.convert("L")
    if scale == 1.0:
        return image
    exif = image.getexif()
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    smaller = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    smaller.info = {**smaller.info, "exif": exif.tobytes()}
    return smaller


def _confine() -> None:
    """Bound what this process may use."""
    import resource

    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _lock_in() -> None:
    """Load all that decoding needs, by decoding; then let nothing be opened any more."""
    import resource

    from PIL import Image, MpoImagePlugin, TiffImagePlugin  # noqa: F401 - what a JPEG may ask for

    for kind in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (8, 4)).save(file, kind, exif=exif)
        _decoded(file.getvalue(), PictureLimits(keep_pixels=16))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def main() -> None:
    """Read limits and one picture from standard input, and say what it is."""
    _confine()
    _lock_in()
    head = sys.stdin.buffer.readline()
    if not head:
        return
    from PIL import Image

    try:
        picture = _decoded(sys.stdin.buffer.read(), PictureLimits(**json.loads(head)))
    except (_TooLarge, MemoryError, Image.DecompressionBombError):
        sys.stdout.buffer.write(b"large\n")
    else:
        sys.stdout.buffer.write(b"ok\n" + picture.png)


if __name__ == "__main__":
    main()
