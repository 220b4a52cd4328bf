"""Files that pretend to be pictures, and noise that is one: for the tests of the sandbox and of the server."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int) -> Image.Image:
    """A picture that does not compress."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    """The file of `image`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds hardly any pixels."""
    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of one grey that goes over its picture again and again, with hardly any data each time."""
    file = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=5)
    last = file.rindex(b"\xff\xda")
    tables = file.rindex(b"\xff\xc4", 0, last)
    return file[:-2] + file[tables:-2] * (scans - file.count(b"\xff\xda")) + b"\xff\xd9"


BOMB = png(60_000, 60_000)


def damaged() -> dict[str, bytes]:
    """Files that must be refused as no pictures, by what is wrong with them."""
    jpeg, whole = encoded(noise(64, 64), "JPEG"), encoded(noise(64, 64), "PNG")
    gif = encoded(noise(8, 8), "GIF")
    return {
        "empty": b"",
        "text": b"hello, I am a .png",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "gif": gif,
        "a gif that is a script as well": gif[:6] + b"/*" + gif[8:] + b"*/=1;alert(1)",
        "random bytes": random.Random(0).randbytes(500),
        "the first bytes of a png, then noise": whole[:8] + random.Random(0).randbytes(500),
        "a truncated jpeg": jpeg[: len(jpeg) // 2],
        "a truncated png": whole[: len(whole) // 2],
        "a png with too few pixels": png(100, 100),
        "a jpeg that begins as a png": whole[:8] + jpeg,
        "a webp of nothing": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20),
    }
