"""Still pictures of a video file that we wrote: one frame as a WEBP, or a sheet of frames as a JPEG.

Run as `python -m omnimuse.media.stills KIND FILE` by `server/jobs/stills.py`, in a process of its own; the picture
goes to standard output. Frames are read one after the other and shrunk at once, so that a long video takes no more
memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path

from PIL import Image

from omnimuse.media.image import encode_image

THUMBNAIL, TILE = 512, 320
"""Pixels of the longer side, at most: of a thumbnail, and of each frame on a sheet."""
TILES = 16
QUALITY = 85


def thumbnail(video: Path) -> bytes:
    """The frame in the middle of `video`, as a WEBP."""
    [(_, frame)] = _frames(video, [_length(video) // 2], THUMBNAIL)
    return encode_image(frame, "WEBP", {}, QUALITY)


def spritesheet(video: Path) -> bytes:
    """Up to 16 frames of `video` in even distances, row by row in a grid of up to 4 x 4, as a JPEG."""
    length = _length(video)
    count = min(TILES, length)
    wanted = [length * (2 * tile + 1) // (2 * count) for tile in range(count)]
    columns = math.ceil(math.sqrt(count))
    sheet: Image.Image | None = None
    for tile, frame in _frames(video, wanted, TILE):
        width, height = frame.size
        sheet = sheet or Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
        sheet.paste(frame, (tile % columns * width, tile // columns * height))
    assert sheet is not None
    return encode_image(sheet, "JPEG", {}, QUALITY)


def _length(video: Path) -> int:
    with import_module("av").open(str(video)) as container:
        return max(1, int(container.streams.video[0].frames))


def _frames(video: Path, wanted: Collection[int], side: int) -> Iterator[tuple[int, Image.Image]]:
    """The frames of those numbers (ascending) with their place among them, none larger than `side` x `side`."""
    places = {number: place for place, number in enumerate(wanted)}
    with import_module("av").open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in places:
                picture = frame.to_image()
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
                yield places[number], picture
            if number >= max(places):
                return


def main() -> None:
    """Write the still that the command line names to standard output."""
    make = {"thumbnail": thumbnail, "spritesheet": spritesheet}[sys.argv[1]]
    sys.stdout.buffer.write(make(Path(sys.argv[2])))


if __name__ == "__main__":
    main()
