"""Videos: frames with a rate, and MP4 files that carry the settings they were made with.

Called by the engine, the Python API and the command line. Files are H.264 (libx264) in yuv420p with BT.709 colours, so
that browsers and phones play them, with sound as AAC, their index in front; settings travel as JSON in the comment.
PyAV does the work. It is an optional library, imported where a file is written or read.
"""

from __future__ import annotations

import json
import tempfile
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from omnimuse.core.bounds import object_in
from omnimuse.core.errors import ConfigError, RequestError, reason
from omnimuse.media.destination import check_destination, write_whole
from omnimuse.media.formats import VIDEOS as FORMATS
from omnimuse.media.image import from_pixels, to_pixels
from omnimuse.media.sound import Sound
from omnimuse.media.streamed import AAC_BITS, AAC_RATES, LAYOUTS, frame_of, pyav

if TYPE_CHECKING:
    from torch import Tensor

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
    check_destination(path, FORMATS)
    _encoder()


def save_video(
    video: Video, path: Path, settings: Mapping[str, Any], sound: Sound | None = None, *, replace: bool = True
) -> None:
    """Write `video`, with `sound` as its track, as MP4 with `settings` inside; `path` is never half-written.

    RequestError for another suffix, ConfigError without PyAV, OSError when the disk refuses, FileExistsError where
    there is a file and it may not be replaced.
    """
    check_video_destination(path)
    write_whole(path, encode_video(video, settings, sound), replace=replace)


def encode_video(video: Video, settings: Mapping[str, Any], sound: Sound | None = None) -> bytes:
    """The bytes of `video`, with `sound` as its track, as MP4, with `settings` inside.

    yuv420p stores colour for two by two pixels: where a side is odd, its last row or column is stored twice. A sound of
    a rate that AAC does not have is stored at the next higher one.
    """
    with tempfile.TemporaryDirectory(prefix="omnimuse-video-") as folder:  # the index goes in front at the end
        path = Path(folder) / "video.mp4"
        _write(video, sound, path, json.dumps(settings, ensure_ascii=False, sort_keys=True))
        return path.read_bytes()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `save_video` wrote into the file; RequestError without any, ConfigError without PyAV."""
    av = pyav()
    try:
        with av.open(str(path)) as container:
            text = container.metadata.get(SETTINGS_KEY, "")
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path} as a video: {reason(error)}", "path") from None
    settings = object_in(text)
    if settings is None:
        raise RequestError(f"{path} carries no settings; only videos that omnimuse saved do", "path")
    return settings


def _write(video: Video, sound: Sound | None, path: Path, comment: str) -> None:
    av, rate = _encoder(), Fraction(video.fps).limit_denominator(1001)
    width, height = (side + side % 2 for side in video.frames[0].size)
    with av.open(str(path), "w", format="mp4", container_options={"movflags": "+faststart"}) as container:
        container.metadata[SETTINGS_KEY] = comment
        stream = container.add_stream(CODEC, rate=rate, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        track = None if sound is None else _Track(container, sound)  # all streams, before anything is written
        for number, picture in enumerate(video.frames):
            pixels = np.asarray(picture.convert("RGB"))  # [h, w, 3]
            even = np.pad(pixels, ((0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
            if track is not None:
                track.write_to((number + 1) / rate)
        container.mux(stream.encode(None))
        if track is not None:
            track.write_to(None)


def recompressed(picture: Image.Image, crf: int) -> Image.Image:
    """`picture`, an odd last row or column left out, as it looks after H.264 at the quality `crf`."""
    av, file = _encoder(), BytesIO()
    even = np.asarray(picture)[: picture.height // 2 * 2, : picture.width // 2 * 2]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = even.shape[:2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))


class _Track:
    """The sound of a file that is being written, beside its frames: players want both of a moment close together."""

    def __init__(self, container: Any, sound: Sound) -> None:
        self._container, self._sound = container, sound
        rate = min((r for r in AAC_RATES if r >= sound.rate), default=max(AAC_RATES))
        layout = LAYOUTS.get(len(sound.samples))
        if layout is None:
            raise RequestError(f"a track has 1 or 2 channels, and this sound {len(sound.samples)}", "output_format")
        self._stream = container.add_stream("aac", rate=rate, layout=layout)
        self._stream.bit_rate = AAC_BITS
        self._resampler = pyav().AudioResampler("fltp", layout, rate)
        self._at = 0

    def write_to(self, seconds: Fraction | None) -> None:
        """Write what is heard up to `seconds`; None: the rest."""
        samples, rate = self._sound.samples, self._sound.rate
        end = samples.shape[1] if seconds is None else min(samples.shape[1], int(seconds * rate))
        if end > self._at:
            piece = samples[:, self._at : end].clip(-1, 1)
            self._encode(self._resampler.resample(frame_of(piece, rate, self._at)))
            self._at = end
        if seconds is None:
            self._encode([*self._resampler.resample(None), None])

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


def _encoder() -> Any:
    """PyAV, with the encoder that is needed."""
    av = pyav()
    if CODEC not in av.codecs_available:
        raise ConfigError(f'this PyAV has no encoder {CODEC}; install its wheel: pip install "omnimuse[video]"')
    return av
