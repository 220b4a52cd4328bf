"""Videos that people give: what is read of them, how they come out, and what is believed of a stranger's."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Clip
from omnimuse.media.clip import clip_of, frames_of, open_clip
from omnimuse.media.foreign_clip import HEAD, ClipError, ClipLimits, believed, kind_of, read_foreign_clip, written
from omnimuse.media.sandbox import CLIPS, Sandbox
from omnimuse.media.video import Video, encode_video
from tests.checkpoints.wishes import film


def pixels(clip: Clip) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in frames_of(clip)])  # [F, H, W, 3]


def filmed(frames: int = 6, fps: float = 12.0, size: tuple[int, int] = (64, 48)) -> Video:
    return Video(film(*size, frames), fps)


def packed(container: str, codec: str, frames: int = 3) -> bytes:
    """A video in another container, by another codec."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in film(64, 48, frames):
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode(None))
    return file.getvalue()


def test_a_file_comes_back_with_its_frames_and_its_rate(tmp_path: Path) -> None:
    video, path = filmed(), tmp_path / "a.mp4"
    path.write_bytes(encode_video(video, {}))
    for given in (path, str(path), path.read_bytes()):
        clip = open_clip(given)
        assert (clip.width, clip.height, len(clip.frames), clip.fps) == (64, 48, 6, 12.0)
    assert len(set(clip.frames)) == 6


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 30), (20, 40, 220), (128, 128, 128)])
def test_colours_come_back_by_the_matrix_that_the_file_names(colour: tuple[int, int, int]) -> None:
    content = encode_video(Video((Image.new("RGB", (64, 48), colour),) * 2, 12.0), {})
    assert abs(pixels(open_clip(content)) - np.array(colour)).max() <= 3


@pytest.mark.parametrize(("container", "codec"), [("matroska", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")])
def test_other_containers_are_read_by_their_first_bytes(container: str, codec: str) -> None:
    content = packed(container, codec)
    assert kind_of(content) == container
    assert len(open_clip(content).frames) == 3


def test_pictures_and_arrays_are_videos_bit_for_bit_and_say_no_rate() -> None:
    pictures = film(20, 10, 3)
    array = np.stack([np.asarray(picture) for picture in pictures])
    for given in (list(pictures), pictures, array, list(array), array / 255.0):
        clip = open_clip(given)
        assert (clip.fps, (pixels(clip) == array).all()) == (0.0, True)
    assert open_clip(clip) is clip
    assert open_clip(Video(pictures, 7.5)).fps == 7.5
    assert len(open_clip(array, 2).frames) == 2
    assert clip.digest == open_clip(array).digest != open_clip(array[::-1]).digest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.mp4", "there is no video nowhere.mp4"),
        (7, "a video is a Video, a file's name or its bytes, a list of pictures, or an array .* got int"),
        (Path(__file__), "test_clip.py is no MP4, MOV, WebM, Matroska, AVI or MPEG-TS file by its first bytes"),
        (b"\0\0\0\x20ftypisom" + bytes(100), "cannot read the video as a video"),
        ([], "the video has no frames; give at least one frame"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 4))], "the video has 8x4, 8x8; give"),
        ([np.zeros((8, 8), np.uint8)], r"a frame is .* got an array uint8 \(8, 8\)"),
        (np.full((2, 8, 8, 3), 7.0), "got an array float64"),
    ],
)
def test_what_is_no_video_is_refused(given: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_clip(given)


def ask(content: bytes, limits: ClipLimits | None = None) -> Clip:
    async def inner() -> Clip:
        sandbox = Sandbox(command=CLIPS)
        try:
            return await read_foreign_clip(sandbox, content, limits)
        finally:
            await sandbox.close()

    return asyncio.run(inner())


def test_a_child_reads_what_a_stranger_sends_as_it_would_be_read_here() -> None:
    content = encode_video(filmed(), {})
    clip = ask(content, ClipLimits(frames=4))
    assert clip == open_clip(content, 4)


def test_a_child_keeps_no_more_than_it_is_told() -> None:
    content = encode_video(filmed(4, size=(128, 96)), {})
    small = ask(content, ClipLimits(keep_pixels=32 * 24))
    assert (small.width, small.height, len(small.frames)) == (32, 24, 4)
    few = ask(content, ClipLimits(keep_bytes=20_000))
    assert sum(len(frame) for frame in few.frames) <= 20_000
    assert few.width / few.height == pytest.approx(4 / 3, rel=0.1)
    with pytest.raises(ClipError, match=r"frames of at most 0\.01 megapixels"):
        ask(content, ClipLimits(max_pixels=10_000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the video is empty"),
        (b"GIF89a" + bytes(99), "is no MP4, MOV, .* by its first bytes"),
        (b"\0\0\0\x20ftypisom" + bytes(100), "the video cannot be read: its file is damaged"),
    ],
)
def test_what_a_stranger_sends_that_is_no_video_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        ask(content)


def test_a_child_that_was_taken_over_is_not_believed() -> None:
    limits, clip = ClipLimits(frames=3, keep_pixels=200), clip_of(film(20, 10, 3), 8.0)
    whole = written(clip)
    assert believed(whole, limits) == clip
    other = clip_of(film(10, 10, 1))
    lies = [
        b"",
        whole[:-1],
        whole + b"x",
        HEAD.pack(8.0, 0.0, 2) + whole[HEAD.size :],
        HEAD.pack(float("nan"), 0.0, 3) + whole[HEAD.size :],
        HEAD.pack(8.0, 0.0, 4) + whole[HEAD.size :] + written(other)[HEAD.size :],
        written(Clip(20, 10, (*clip.frames[:2], *other.frames), 8.0)),
        written(clip_of(film(21, 10, 3), 8.0)),
        HEAD.pack(8.0, 0.0, 0),
        HEAD.pack(8.0, float("nan"), 3) + whole[HEAD.size :],
        HEAD.pack(8.0, float("inf"), 3) + whole[HEAD.size :],
    ]
    for lie in lies:
        with pytest.raises(ClipError, match="damaged or incomplete"):
            believed(lie, limits)
