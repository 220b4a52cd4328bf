"""Videos: frames with a rate, and MP4 files that carry the settings they were made with.

Called by the engine, the Python API and the command line. Files are H.264 (libx264) in yuv420p with BT.709 colours, so
that browsers and phones play them, their index in front; settings travel as JSON in the comment. PyAV does the work. It
is an optional library, imported where a file is written or read.
"""

from __future__ import annotations

import json
import tempfile
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.media.destination import check_destination, write_whole
from omnimuse.media.image import from_pixels, to_pixels

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".mp4",)
SETTINGS_KEY = "comment"  # of the few tags that MP4 knows, the one that players show
CODEC = "libx264"
OPTIONS = {"crf": "17", "preset": "medium"}  # visually lossless
BT709, LIMITED_RANGE = 1, 1  # numbers of ITU-T H.273


@dataclass(frozen=True)
class Video:
    """Pictures of one size, `fps` of them a second."""

    frames: tuple[Image.Image, ...]
    fps: float

    def __post_init__(self) -> None:
        sizes = {frame.size for frame in self.frames}
        if len(sizes) != 1:
            raise RequestError(f"the frames have sizes {sorted(sizes)}; give at least one, all of one size", "frames")

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.frames) / self.fps

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        content = b64encode(encode_video(self, {})).decode()
        return f'<video controls loop src="data:video/mp4;base64,{content}"></video>'


def to_video(values: Tensor, fps: float) -> Video:
    """Float [F, 3, H, W] in [0, 1] -> a video."""
    return Video(tuple(from_pixels(pixels) for pixels in to_pixels(values)), fps)


def check_video_destination(path: Path) -> None:
    """To be asked before any work: RequestError unless a video can be written at `path`, ConfigError without PyAV."""
    check_destination(path, SUFFIXES)
    _encoder()


def save_video(video: Video, path: Path, settings: Mapping[str, Any], *, replace: bool = True) -> None:
    """Write `video` as MP4 with `settings` inside; `path` is never half-written.

    RequestError for another suffix, ConfigError without PyAV, OSError when the disk refuses, FileExistsError where
    there is a file and it may not be replaced.
    """
    check_video_destination(path)
    write_whole(path, encode_video(video, settings), replace=replace)


def encode_video(video: Video, settings: Mapping[str, Any]) -> bytes:
    """The bytes of `video` as MP4, with `settings` inside.

    yuv420p stores colour for two by two pixels: where a side is odd, its last row or column is stored twice.
    """
    with tempfile.TemporaryDirectory(prefix="omnimuse-video-") as folder:  # the index goes in front at the end
        path = Path(folder) / "video.mp4"
        _write(video, path, json.dumps(settings, ensure_ascii=False, sort_keys=True))
        return path.read_bytes()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `save_video` wrote into the file; RequestError without any, ConfigError without PyAV."""
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            text = container.metadata.get(SETTINGS_KEY, "")
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path} as a video: {error}", "path") from None
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise RequestError(f"{path} carries no settings; only videos that omnimuse saved do", "path")
    return settings


def _write(video: Video, path: Path, comment: str) -> None:
    av, rate = _encoder(), Fraction(video.fps).limit_denominator(1001)
    width, height = (side + side % 2 for side in video.frames[0].size)
    with av.open(str(path), "w", format="mp4", container_options={"movflags": "+faststart"}) as container:
        container.metadata[SETTINGS_KEY] = comment
        stream = container.add_stream(CODEC, rate=rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        for number, picture in enumerate(video.frames):
            pixels = np.asarray(picture.convert("RGB"))  # [h, w, 3]
            even = np.pad(pixels, ((0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _encoder() -> Any:
    """PyAV, with the encoder that is needed."""
    av = _pyav()
    if CODEC not in av.codecs_available:
        raise ConfigError(f'this PyAV has no encoder {CODEC}; install its wheel: pip install "omnimuse[video]"')
    return av


def _pyav() -> Any:
    try:
        return import_module("av")
    except ImportError:
        raise ConfigError('MP4 files need PyAV, which is not installed: pip install "omnimuse[video]"') from None
