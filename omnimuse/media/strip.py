"""A stranger's picture file without what no decoder needs to see: its first picture, and how it is to be turned.

`decoder` calls `stripped` in its child before a library opens the file. What is left out is what makes a small file
cost much: text and profiles that unpack to megabytes, further pictures of an animation, a thousand scans. Formats are
walked, not understood: a file that is wrong inside is passed on as it is, for the library to refuse.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

PARTS = 2**16
"""Chunks or segments of a file at most: a large picture has some thousand."""
EXIF = 2**16
"""Bytes of EXIF at most; longer ones are left out."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # not: a byte of data, a restart, a filler
_LONELY = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_ICC_AND_XMP = 0x20 | 0x04
_WEBP_KEPT = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH")


class CostlyError(Exception):
    """A file that would take far more work than its picture is worth."""


def stripped(content: bytes, kind: str, max_scanned: int) -> bytes:
    """`content`, a file of `kind`, with one picture and its EXIF; CostlyError if it has too many parts or scans."""
    if kind == "PNG":
        return _stripped_png(content)
    return _stripped_jpeg(content, max_scanned) if kind == "JPEG" else _stripped_webp(content)


def _count(found: int) -> None:
    if found > PARTS:
        raise CostlyError(f"more than {PARTS} parts")


# -- PNG -------------------------------------------------------------------------------------------------------------


def _stripped_png(content: bytes) -> bytes:
    """Header, palette, transparency, pixels, one EXIF."""
    kept, at, count, turned = [_PNG], len(_PNG), 0, False
    while at + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        _count(count := count + 1)
        if name in _PNG_KEPT or (name == b"eXIf" and length <= EXIF and not turned):
            kept.append(content[at:end])
            turned |= name == b"eXIf"
        if name == b"IEND":
            break
        at = end
    return b"".join(kept)


# -- JPEG ------------------------------------------------------------------------------------------------------------


def _stripped_jpeg(content: bytes, max_scanned: int) -> bytes:
    """All that belongs to the picture, up to its end; of the rest JFIF, one EXIF and Adobe's note of the colours."""
    kept, samples, scanned, seen = [b"\xff\xd8"], 0, 0, set[int]()
    for marker, segment in _segments(content):
        if marker in _FRAMES and len(segment) >= 10:
            height, width = struct.unpack_from(">HH", segment, 5)
            samples = max(samples, height * width)
        if marker == _SCAN:
            scanned += samples * (segment[4] if len(segment) > 4 else 1)
            if scanned > max_scanned:
                raise CostlyError("too many scans")
        if marker in _APPLICATION or marker == _COMMENT:
            if marker in seen or not _is_wanted(marker, segment):
                continue
            seen.add(marker)
        kept.append(segment)
    return b"".join(kept)


def _is_wanted(marker: int, segment: bytes) -> bool:
    if marker == _EXIF:
        return segment[4:10] == b"Exif\0\0"
    return (marker == _JFIF and segment[4:9] == b"JFIF\0") or (marker == _ADOBE and segment[4:9] == b"Adobe")


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment after the first; of a scan with its data. Ends with the picture."""
    at, count = 2, 0
    while found := _MARKER.search(content, at):
        _count(count := count + 1)
        start, marker = found.end() - 2, content[found.end() - 1]
        if marker in _LONELY:
            at = found.end()
            continue
        if marker == _END:
            yield marker, content[start : start + 2]
            return
        if start + 4 > len(content):
            return
        at = start + 2 + int(struct.unpack_from(">H", content, start + 2)[0])
        if marker == _SCAN:
            following = _MARKER.search(content, at)
            at = following.start() if following else len(content)
        yield marker, content[start:at]


# -- WEBP ------------------------------------------------------------------------------------------------------------


def _stripped_webp(content: bytes) -> bytes:
    """The canvas, and one picture or the first of an animation; one EXIF."""
    kept, at, count, seen = list[bytes](), 12, 0, set[bytes]()
    while at + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, at)
        end = at + 8 + length + length % 2
        _count(count := count + 1)
        wanted = name in _WEBP_KEPT or name in (b"ANIM", b"ANMF") or (name == b"EXIF" and length <= EXIF)
        if wanted and name not in seen:
            seen.add(name)
            chunk = content[at:end]
            kept.append(_plain_canvas(chunk) if name == b"VP8X" else chunk)
        at = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _plain_canvas(chunk: bytes) -> bytes:
    """The header of the canvas without the words that a profile and XMP follow."""
    return chunk[:8] + bytes([chunk[8] & ~_ICC_AND_XMP]) + chunk[9:] if len(chunk) > 8 else chunk
