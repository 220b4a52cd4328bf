"""Videos that people give: opened, their frames turned upright and made RGB, each kept as a PNG file of our own.

Called by the Python API, the command line, and the process that decodes what strangers send. Files from strangers must
not be opened here in a process that matters (see `foreign_clip.py`). PyAV, an optional library, reads the files.

Letters: F frames; H W height, width.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omnimuse.core.errors import RequestError, reason
from omnimuse.core.request import Clip, Picture
from omnimuse.media import watching
from omnimuse.media.foreign_clip import READ, kind_of
from omnimuse.media.picture import open_mask, picture_of
from omnimuse.media.recording import MOST as LONGEST
from omnimuse.media.recording import read_track
from omnimuse.media.streamed import pyav
from omnimuse.media.video import Video

MOST = 241
"""Frames that are read of a file, where nobody says how many are needed: ten seconds and one frame at 24 a second."""
RATES = (0.1, 1000.0)
"""Frames a second that are believed of a file."""

Fit = Callable[[int, int], tuple[int, int]]
"""(width, height) of the frames in a file -> those that are kept."""


def as_it_is(width: int, height: int) -> tuple[int, int]:
    """All pixels are kept."""
    return width, height


def open_watched(given: Any, *, heard: bool = False) -> Clip:
    """A clip of the frames of a video that are looked at (`watching.py`), to its end; as `open_clip`. Of a file that is
    `heard` as well it has the track, where there is one.
    """
    match given:
        case bytes() | bytearray():
            made = read_clip(bytes(given), watching.READ, watched=True)
            return _heard(made, bytes(given), "the video") if heard else made
        case str() | Path():
            made = read_clip(content := _bytes_of(given), watching.READ, name=str(given), watched=True)
            return _heard(made, content, str(given)) if heard else made
        case Video():
            chosen = watching.places(len(given.frames), given.fps)
            made = clip_of([given.frames[place] for place in chosen], watching.RATE)
            return replace(made, spread=watching.spread(len(given.frames), given.fps))
    many = isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.ndim > 0)
    if many and (spread := watching.spread(len(given), watching.RATE)):
        chosen = [given[place] for place in watching.places(len(given), watching.RATE)]
        return replace(open_clip(chosen, len(chosen)), spread=spread)
    return open_clip(given, len(given) if many else None)


def open_changed(given: Any, most: int | None = None) -> Clip:
    """A clip of what is to be made into another video, which keeps its sound: with the track of a file, as long as its
    frames, or why that is lost; as `open_clip`.
    """
    made = open_clip(given, most)
    if not made.fps or not isinstance(given, bytes | bytearray | str | Path):
        return made
    content, name = (_bytes_of(given), str(given)) if isinstance(given, str | Path) else (bytes(given), "the video")
    try:
        return replace(made, track=read_track(content, len(made.frames) / made.fps, name))
    except RequestError as error:  # its frames are there
        return replace(made, lost=str(error))


def _heard(clip: Clip, content: bytes, name: str) -> Clip:
    return replace(clip, track=read_track(content, LONGEST, name))


def open_clip(given: Any, most: int | None = None) -> Clip:
    """A clip of the first `most` frames of what somebody gave; RequestError says what cannot be one.

    That is a `Video`, the name or the bytes of a file, a list of pictures (Pillow's, or arrays uint8 [H, W, 3]), or an
    array [F, H, W, 3], uint8 or floats in [0, 1]. A `Clip` is one already.
    """
    count = most or MOST
    match given:
        case Clip():
            return given
        case Video():
            return clip_of(given.frames[:count], given.fps)
        case bytes() | bytearray():
            return read_clip(bytes(given), count)
        case str() | Path():
            return read_clip(_bytes_of(given), count, name=str(given))
        case np.ndarray() if given.ndim == 4:
            return clip_of([_image(frame) for frame in given[:count]])
        case list() | tuple():
            return clip_of([_image(frame) for frame in given[:count]])
    kinds = "a Video, a file's name or its bytes, a list of pictures, or an array [F, H, W, 3]"
    raise RequestError(f"a video is {kinds}, got {type(given).__name__}", "videos")


def _bytes_of(name: str | Path) -> bytes:
    if not Path(name).is_file():
        raise RequestError(f"there is no video {name}; give the name of a file that exists", "videos")
    return Path(name).read_bytes()


def open_film_mask(given: Any, most: int | None) -> Clip | Picture:
    """A mask over a video: a clip of the first `most` frames of what says of each frame what is drawn anew, or one
    picture (`media.picture.open_mask`) for all of them.
    """
    of_file = isinstance(given, str | Path) and Path(given).is_file() and _is_film(Path(given))
    if of_file or isinstance(given, Clip | Video | bytes | bytearray | list | tuple | np.ndarray):
        return open_clip(given, most)
    return open_mask(given)


def _is_film(path: Path) -> bool:
    with path.open("rb") as file:
        return kind_of(file.read(1024)) is not None


def clip_of(frames: Sequence[Image.Image], fps: float = 0.0) -> Clip:
    """Pictures of one size as a clip; RequestError for none, and for several sizes."""
    pictures = [picture_of(frame) for frame in frames]
    sizes = sorted({(picture.width, picture.height) for picture in pictures})
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for width, height in sizes) or "no frames"
        raise RequestError(f"the video has {found}; give at least one frame, all of one size", "videos")
    [(width, height)] = sizes
    return Clip(width, height, tuple(picture.png for picture in pictures), fps)


def read_clip(
    content: bytes, most: int, fit: Fit = as_it_is, name: str = "the video", *, watched: bool = False
) -> Clip:
    """The first `most` frames of the video in `content`, each in the size that `fit` gives; RequestError if it is none.
    Of one that is to be `watched`, those frames that are looked at, `most` at most.

    What kind of file it is its first bytes say: of those that PyAV knows, some name other files to be opened.
    """
    av, kind, spread = pyav(), kind_of(content), 0.0
    if kind is None:
        raise RequestError(f"{name} is no {READ} file by its first bytes; use one of these formats", "videos")
    try:
        with av.open(io.BytesIO(content), format=kind, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise RequestError(f"{name} holds no video; give one with frames", "videos")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # a process that is locked in can start no thread
            rate = float(stream.average_rate or 0)
            rate = rate if RATES[0] <= rate <= RATES[1] else 0.0
            if watched:
                count, rate = _length(av, content, kind), rate or watching.RATE
                chosen, spread = watching.places(count, rate, most), watching.spread(count, rate, most)
                frames = _picked(container.decode(stream), chosen, fit)
            else:
                frames = [_upright(frame, fit) for frame in islice(container.decode(stream), most)]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise RequestError(f"cannot read {name} as a video: {reason(error)}", "videos") from None
    return replace(clip_of(frames, watching.RATE if watched else rate), spread=spread)


def _length(av: Any, content: bytes, kind: str) -> int:
    """The frames of a video, which its file need not say: its packets are counted, and not decoded."""
    with av.open(io.BytesIO(content), format=kind, metadata_errors="ignore") as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def _picked(frames: Iterator[Any], chosen: Sequence[int], fit: Fit) -> list[Image.Image]:
    """Those of `frames` that are `chosen`, in order, some perhaps more than once; what does not come is left out."""
    times, last, found = Counter(chosen), max(chosen, default=-1), list[Image.Image]()
    for number, frame in enumerate(islice(frames, last + 1)):
        if number in times:
            found += [_upright(frame, fit)] * times[number]
    return found


def frames_of(clip: Clip) -> Iterator[Image.Image]:
    """The frames of `clip`, one after the other."""
    for png in clip.frames:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            yield image.convert("RGB")


def _upright(frame: Any, fit: Fit) -> Image.Image:
    """A decoded frame as its file says it is to be seen, smaller where it is not needed as large."""
    width, height = fit(frame.width, frame.height)
    plain = frame.reformat(width, height, "rgb24", threads=1)
    image = Image.fromarray(plain.to_ndarray())
    turned = int(frame.rotation) % 360
    return image.rotate(turned, expand=True) if turned else image


def _image(given: Any) -> Image.Image:
    """A frame of a list or an array."""
    match given:
        case Image.Image():
            return given
        case Picture():
            return Image.open(io.BytesIO(given.png), formats=("PNG",))
        case np.ndarray() if given.ndim == 3 and given.shape[2] == 3:
            if given.dtype == np.uint8:
                return Image.fromarray(np.ascontiguousarray(given))
            if np.issubdtype(given.dtype, np.floating) and given.min() >= 0 and given.max() <= 1:
                return Image.fromarray((given * 255).round().astype(np.uint8))
    what = f"an array {given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
    raise RequestError(
        f"a frame is a Pillow image or an array [H, W, 3], uint8 or floats in [0, 1], got {what}", "videos"
    )
