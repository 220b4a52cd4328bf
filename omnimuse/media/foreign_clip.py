"""Videos from strangers: which are taken, and what is believed of what a child made of them.

The server asks `read_foreign_clip`. MP4 and MOV, WebM and Matroska, AVI and MPEG transport streams by their first bytes
only; what comes back are PNG files of our own, checked before they are believed. The child's half is in `decoder.py`;
nothing here imports PyAV or Pillow.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import asdict, dataclass
from math import inf

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Clip
from omnimuse.media.foreign import size_of
from omnimuse.media.sandbox import Question, Sandbox, SandboxError

READ = "MP4, MOV, WebM, Matroska, AVI or MPEG-TS"
HEAD = struct.Struct("<ddI")
"""What a child's answer begins with: frames a second, over how many seconds they are spread, how many there are."""
LENGTH = struct.Struct("<I")
"""In front of every frame: its bytes."""
_PACKET = 188  # bytes of a packet of a transport stream, which begins with an "G"


@dataclass(frozen=True)
class ClipLimits:
    """What is decoded, and how much is kept of it: the first `frames` frames of a video whose frames have at most
    `max_pixels`, scaled down to `keep_pixels` each, and so far that all of them have `keep_bytes` as PNG files. Of a
    video that is to be `watched` it is so many of those that are looked at (`watching.py`).
    """

    frames: int = 81
    max_pixels: int = 4096 * 2304
    keep_pixels: int = 1280 * 1280
    keep_bytes: int = 24 * 2**20
    watched: bool = False


class ClipError(RequestError):
    """A video that is not taken."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "video")


def kind_of(content: bytes) -> str | None:
    """The demuxer for what the first bytes announce, if it is a format that is read."""
    start = bytes(content[:16])
    if start[4:8] == b"ftyp":
        return "mp4"
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    packets = content[: 3 * _PACKET : _PACKET]
    return "mpegts" if bytes(packets) == b"GGG" else None


async def read_foreign_clip(sandbox: Sandbox, content: bytes, limits: ClipLimits | None, tenant: str = "") -> Clip:
    """The video in `content`; ClipError if it is none. Cancelling ends the work.

    CapacityError when too many files wait, or no child can be started.
    """
    limits = limits or ClipLimits()
    if kind_of(content) is None:
        what = "is empty" if not content else f"is no {READ} file by its first bytes"
        raise ClipError(f"the video {what}; send one of these formats")
    most = HEAD.size + limits.frames * LENGTH.size + limits.keep_bytes
    try:
        answer = await sandbox.ask(Question("clip", content, asdict(limits), most), tenant)
    except SandboxError as error:
        raise _refused(error, limits) from None
    return await asyncio.to_thread(believed, answer, limits)  # sums of megabytes, and not on the event loop


def written(clip: Clip) -> bytes:
    """What a child answers: `clip` as bytes."""
    frames = (LENGTH.pack(len(png)) + png for png in clip.frames)
    return HEAD.pack(clip.fps, clip.spread, len(clip.frames)) + b"".join(frames)


def believed(answer: bytes, limits: ClipLimits) -> Clip:
    """The clip that a child made. Who took over a child could say anything: only plain RGB PNGs are believed."""
    if len(answer) < HEAD.size:
        raise _damaged()
    fps, spread, count = HEAD.unpack_from(answer)
    frames, at = list[bytes](), HEAD.size
    while at + LENGTH.size <= len(answer) and len(frames) < count:
        [length] = LENGTH.unpack_from(answer, at)
        at += LENGTH.size + length
        frames.append(answer[at - length : at])
    sizes = {size_of(png) for png in frames}
    whole = at == len(answer) and 0 < len(frames) == count <= limits.frames and len(sizes) == 1
    size = next(iter(sizes)) if whole else None
    if size is None or size[0] * size[1] > limits.keep_pixels or not (0 <= fps <= 1000 and 0 <= spread < inf):
        raise _damaged()
    return Clip(size[0], size[1], tuple(frames), fps, spread)


def _refused(error: SandboxError, limits: ClipLimits) -> ClipError:
    if error.trouble == "large":
        return ClipError(
            "the video takes too much to read; send one with frames of at most "
            f"{limits.max_pixels / 1e6:.3g} megapixels"
        )
    if error.trouble == "slow":
        return ClipError("the video cannot be read in time; send one that is shorter, or has smaller frames")
    return _damaged()


def _damaged() -> ClipError:
    return ClipError("the video cannot be read: its file is damaged or incomplete; save it anew and send that")
