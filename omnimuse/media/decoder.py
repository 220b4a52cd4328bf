"""The child that does what `sandbox` asks: one question about one file, and the end.

Run as `python -m omnimuse.media.decoder`, for videos with the word `clip`. It bounds itself, loads what every work
needs by doing it once, locks itself in (`confine.py`), says that it is ready and what it lacks, and only then looks at
what a stranger sent. Whatever goes wrong with that ends it. Standard input and output are the channel; nothing is ever
printed.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401 - loaded while files can be

from omnimuse.core.errors import ConfigError
from omnimuse.core.request import Picture
from omnimuse.media.clip import read_clip
from omnimuse.media.confine import bound, lock_in
from omnimuse.media.foreign import PictureLimits, kind_of
from omnimuse.media.foreign_clip import ClipLimits, written
from omnimuse.media.foreign_sound import CHANNELS, HEAD, RecordingLimits
from omnimuse.media.picture import eight_bits, mask_of, picture_of
from omnimuse.media.recording import read_track
from omnimuse.media.sound import Sound, encode_sound, library
from omnimuse.media.streamed import pyav
from omnimuse.media.strip import CostlyError, stripped

MEMORY, CLIP_MEMORY = 2**30, 3 * 2**30  # bytes of address space
CPU, CLIP_CPU = 15, 45  # seconds of computation for an answer
_HEAD = 2**12  # bytes of a question before its content, at most
_ORIENTATION = 0x0112
_LEAST = 4  # bytes that a pixel may take in a PNG of ours, at most


class TooLargeError(Exception):
    """A file beyond the limits of the question."""


# -- the works -------------------------------------------------------------------------------------------------------


def picture(content: bytes, given: Mapping[str, int]) -> bytes:
    """The PNG of our own of the picture in `content`. Any error but TooLargeError means that it is none."""
    return _read(content, given, picture_of)


def mask(content: bytes, given: Mapping[str, int]) -> bytes:
    """The same of a mask."""
    return _read(content, given, mask_of)


def _read(content: bytes, given: Mapping[str, int], make: Callable[[Image.Image], Picture]) -> bytes:
    limits, kind = PictureLimits(**given), kind_of(content)
    file = stripped(content, str(kind), limits.max_scanned)
    most = limits.max_pixels // (2 if kind == "WEBP" else 1)
    with Image.open(io.BytesIO(file), formats=[str(kind)]) as image:
        if image.width * image.height > most or max(image.size) > limits.max_side:
            raise TooLargeError
        return make(_reduced(image, limits)).png


def _reduced(image: Image.Image, limits: PictureLimits) -> Image.Image:
    """`image` with at most `keep_pixels` pixels, in a mode that can be scaled and shown."""
    scale = min(1.0, (limits.keep_pixels / (image.width * image.height)) ** 0.5)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    image.draft("RGB", size)  # a JPEG is decoded no larger than needed; others take no notice
    image = eight_bits(image, image.format)
    if scale == 1.0:
        return image
    exif = image.getexif()
    if image.mode in ("P", "PA", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    smaller = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    smaller.info = {**smaller.info, "exif": exif.tobytes()}
    return smaller


def _try_picture() -> None:
    """Read a picture of every kind that loads something of its own."""
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        for mode in ("RGB", "RGBA", "P", "I;16") if kind == "PNG" else ("RGB",):
            file, plain = io.BytesIO(), Image.new("RGB", (8, 4))
            image = Image.fromarray(np.zeros((4, 8), np.uint16)) if mode == "I;16" else plain.convert(mode)
            image.save(file, kind, exif=exif)
            for keep in (16, 64):
                picture(file.getvalue(), {"keep_pixels": keep})
                mask(file.getvalue(), {"keep_pixels": keep})


def sound(content: bytes, given: Mapping[str, int]) -> bytes:
    """The samples of the sound in `content`, and what they are, in front. Any error but TooLargeError: it is none."""
    limits = RecordingLimits(**given)
    with library().SoundFile(io.BytesIO(content)) as opened:
        if not 0 < opened.channels <= CHANNELS:
            raise TooLargeError
        most = min(limits.milliseconds * opened.samplerate // 1000, limits.keep_bytes // (2 * opened.channels))
        samples = opened.read(most, dtype="int16", always_2d=True)  # [n, c]
        return HEAD.pack(opened.samplerate, opened.channels) + samples.astype("<i2").tobytes()


def _try_sound() -> None:
    """Read a sound of every kind that loads something of its own; without the library, none can be read."""
    try:
        library()
    except ConfigError:
        return
    plain = Sound(np.zeros((2, 2000), np.float32), 16_000)
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        sound(encode_sound(plain, kind, {}), {})


def clip(content: bytes, given: Mapping[str, Any]) -> bytes:
    """The first frames of the video in `content`, or those that are looked at, with what they are. Any error but
    TooLargeError means: it is none.
    """
    limits = ClipLimits(**given)
    keep = limits.keep_pixels

    def fit(width: int, height: int) -> tuple[int, int]:
        if width * height > limits.max_pixels:
            raise TooLargeError
        scale = min(1.0, (keep / (width * height)) ** 0.5)
        return max(1, int(width * scale)), max(1, int(height * scale))

    while True:
        made = read_clip(content, limits.frames, fit, watched=limits.watched)
        held = sum(len(frame) for frame in made.frames)
        if held <= limits.keep_bytes:
            return written(made)
        if made.width * made.height <= limits.keep_bytes // limits.frames // _LEAST:
            raise TooLargeError
        keep = int(made.width * made.height * min(0.9 * limits.keep_bytes / held, 0.9))


def _try_film() -> None:
    """Read the frames and the sound of a video; without the library, none can be read."""
    try:
        av = pyav()
    except ConfigError:
        return
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        seen = out.add_stream("mpeg4", rate=8, options={"threads": "1"})
        seen.width, seen.height, seen.pix_fmt = 32, 16, "yuv420p"
        heard = out.add_stream("aac", rate=16_000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 16_000
        for stream, frames in ((seen, [av.VideoFrame.from_image(Image.new("RGB", (32, 16)))] * 3), (heard, [tone])):
            for frame in (*frames, None):
                out.mux(stream.encode(frame))
    clip(file.getvalue(), {"keep_pixels": 128})
    track(file.getvalue(), {})


def track(content: bytes, given: Mapping[str, int]) -> bytes:
    """As `sound`, of what is heard in the video in `content`; nothing where that is nothing."""
    limits = RecordingLimits(**given)
    heard = read_track(content, limits.milliseconds / 1000)
    if heard is None:
        return b""
    whole = limits.keep_bytes // (2 * heard.channels) * 2 * heard.channels
    return HEAD.pack(heard.rate, heard.channels) + heard.pcm[:whole]


WORKS: Mapping[str, tuple[Callable[[bytes, Mapping[str, int]], bytes], Callable[[], None]]] = {
    "picture": (picture, _try_picture),
    "mask": (mask, _try_picture),
    "sound": (sound, _try_sound),
}
"""All that can be asked: a work, and how it is done once in advance."""
CLIP_WORKS: Mapping[str, tuple[Callable[[bytes, Mapping[str, int]], bytes], Callable[[], None]]] = {
    "clip": (clip, _try_film),
    "track": (track, _try_film),
}
"""All that can be asked of a child for videos."""


# -- the channel -----------------------------------------------------------------------------------------------------


def prepare(works: Mapping[str, Any] = WORKS, memory: int = MEMORY, cpu: int = CPU) -> dict[str, str]:
    """Make this process one that a stranger's file may take over; returns what could not be had for that."""
    bound(memory)
    for attempt in dict.fromkeys(attempt for _, attempt in works.values()):
        attempt()
    return lock_in(cpu)


def main() -> None:
    """Answer one question."""
    films = sys.argv[1:] == ["clip"]
    works = CLIP_WORKS if films else WORKS
    _say({"lacking": prepare(works, CLIP_MEMORY, CLIP_CPU) if films else prepare()})
    if (head := _hear_line()) is None:
        return
    work, _ = works[head["work"]]
    content = _hear(head["length"])
    try:
        answer = work(content, head["limits"])
    except (TooLargeError, CostlyError, MemoryError, Image.DecompressionBombError):
        _say({"refused": "large"})
    else:
        _say({"length": len(answer)})
        _send(answer)


def _say(said: Mapping[str, object]) -> None:
    _send(json.dumps(said).encode() + b"\n")


def _send(content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(1, left) :]


def _hear_line() -> dict[str, Any] | None:
    """The head of a question; None when there is none. Byte by byte, for what follows is not of it."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _HEAD:
        piece = os.read(0, 1)
        if not piece:
            return None
        line += piece
    head: dict[str, Any] = json.loads(line)
    return head


def _hear(length: int) -> bytes:
    pieces = []
    while length:
        pieces.append(os.read(0, min(2**20, length)))
        length -= len(pieces[-1])
        if not pieces[-1]:
            raise EOFError
    return b"".join(pieces)


if __name__ == "__main__":
    main()
    os._exit(0)  # what libraries do at the end may need calls that are refused now
