"""Pictures from strangers: which are taken, and what is believed of what a child made of them.

The server asks `read_picture`. PNG, JPEG and WEBP by their first bytes only; what comes back is a PNG of our own,
checked before it is believed. Animations give their first frame, EXIF turns the picture, transparency lies over white,
and colour profiles are ignored: numbers are taken as sRGB. The child's half is in `decoder.py`; nothing here imports
Pillow.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Literal

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Picture
from omnimuse.media.sandbox import Question, Sandbox, SandboxError

Kind = Literal["PNG", "JPEG", "WEBP"]
Meaning = Literal["picture", "mask"]
"""A picture for its colours, or for what it says of another one."""

_ROOM = 2**20  # bytes of an answer beside its pixels
_FEW, _BLOCK = 8, 2**12  # chunks of a PNG of ours: some, and one for so many bytes
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class PictureLimits:
    """What is decoded, and how much is kept of it.

    A file says its size in its first bytes: more than `max_pixels`, or a longer side than `max_side`, is not decoded
    (of WEBP, which takes twice the memory, half as many). A JPEG may go over its picture in many scans; all together
    they may pass `max_scanned` values (pixels times colours). A picture of more than `keep_pixels` is scaled down to
    them.
    """

    max_pixels: int = 64_000_000
    max_side: int = 16_384
    max_scanned: int = 1_280_000_000
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


async def read_picture(
    sandbox: Sandbox,
    content: bytes,
    limits: PictureLimits | None = None,
    tenant: str = "",
    work: Meaning = "picture",
) -> Picture:
    """The picture in `content`, or the mask; PictureError if it is none, or too large. Cancelling ends the work.

    CapacityError when too many pictures wait, or no child can be started.
    """
    limits = limits or PictureLimits()
    if kind_of(content) is None:
        what = "is empty" if not content else "is no PNG, JPEG or WEBP file by its first bytes"
        raise PictureError(f"the picture {what}; send one of these formats")
    question = Question(work, content, asdict(limits), 4 * limits.keep_pixels + _ROOM)
    try:
        answer = await sandbox.ask(question, tenant)
    except SandboxError as error:
        raise _refused(error, limits) from None
    return await asyncio.to_thread(believed, answer, limits)  # sums of megabytes, and not on the event loop


def _refused(error: SandboxError, limits: PictureLimits) -> PictureError:
    if error.trouble == "large":
        return PictureError(
            f"the picture is too large; send at most {limits.max_pixels / 1e6:g} megapixels (as WEBP half as many) and "
            f"{limits.max_side} pixels a side, a JPEG of many megapixels without progressive scans",
            "image_too_large",
        )
    if error.trouble == "slow":
        return PictureError("the picture cannot be read in time; save it anew, smaller or as a PNG, and send that")
    return _damaged()


def _damaged() -> PictureError:
    return PictureError("the picture cannot be read: its file is damaged or incomplete; save it anew and send that")


def believed(png: bytes, limits: PictureLimits) -> Picture:
    """The picture that a child made. Who took over a child could say anything: only a plain RGB PNG is believed."""
    size = size_of(png)
    if size is None or size[0] * size[1] > limits.keep_pixels:
        raise _damaged()
    return Picture(size[0], size[1], png)


def size_of(png: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG of 8-bit RGB that holds pixels and nothing else; None for any other bytes."""
    if not png.startswith(_PNG):
        return None
    names, at, head = list[bytes](), len(_PNG), b""
    while at + 12 <= len(png) and len(names) <= _FEW + len(png) // _BLOCK:
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
