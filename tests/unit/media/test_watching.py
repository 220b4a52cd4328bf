"""Videos that are watched: those frames are read that are looked at, of long ones, too, and to their end."""

from __future__ import annotations

import asyncio
import io
from functools import cache

import av
import numpy as np
import pytest
from PIL import Image

from omnimuse.media.clip import open_clip, open_watched, read_clip
from omnimuse.media.foreign_clip import ClipLimits, read_foreign_clip
from omnimuse.media.sandbox import CLIPS, Sandbox
from omnimuse.media.video import Video
from omnimuse.media.watching import READ, places
from omnimuse.pipeline.conversing import frames


@cache
def film(count: int, rate: int, codec: str = "mpeg4") -> bytes:
    """A video of so many frames, each of a grey of its own as far as there are so many."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(count):
            grey = np.full((16, 32, 3), number * 251 // count, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize(("count", "rate"), [(2, 8), (9, 8), (300, 24), (601, 10)])
def test_those_frames_are_read_that_are_looked_at_of_the_whole(count: int, rate: int, codec: str) -> None:
    content = film(count, rate, codec)
    whole, watched = read_clip(content, count), open_watched(content)
    assert len(whole.frames) == count
    expected = [frame.digest for frame in frames(whole)]
    assert [frame.digest for frame in watched.pictures] == expected
    assert [frame.digest for frame in frames(watched)] == expected, "of what was read, all is looked at"


def test_of_a_long_one_fewer_a_second_are_read() -> None:
    content = film(1000, 4)
    whole, watched = read_clip(content, 1000), open_watched(content)
    assert len(frames(watched)) == len(watched.frames) == READ
    assert watched.frames[-1] == whole.frames[-1] != whole.frames[2 * READ]
    assert (watched.spread, whole.spread, open_watched(film(300, 24)).spread) == (250, 0, 0)
    [told] = watched.warnings
    assert told.startswith("a video of 250 s is too long") and not whole.warnings


@pytest.mark.parametrize(("count", "spread"), [(768, 0), (770, 385)])
def test_a_video_in_memory_is_told_to_be_too_long_as_a_file_is(count: int, spread: float) -> None:
    picture = Image.new("RGB", (8, 8))
    for given in (Video((picture,) * count, 2.0), [picture] * count):
        watched = open_watched(given)
        assert (watched.spread, len(watched.frames)) == (spread, 768)


def test_a_stranger_s_video_is_watched_to_its_end() -> None:
    async def read() -> list[str]:
        sandbox = Sandbox(together=1, command=CLIPS)
        try:
            clip = await read_foreign_clip(sandbox, film(601, 10), ClipLimits(frames=40, watched=True))
        finally:
            await sandbox.close()
        assert clip.spread == 60.1
        return [frame.digest for frame in clip.pictures]

    whole = read_clip(film(601, 10), 601).pictures
    assert asyncio.run(read()) == [whole[place].digest for place in places(601, 10, 40)]
    assert places(601, 10, 40)[-1] == 600


def test_pictures_in_a_list_are_all_watched() -> None:
    pictures = [np.full((16, 32, 3), number % 251, np.uint8) for number in range(300)]
    expected = [frame.digest for frame in frames(open_clip(pictures, 300))]
    for given in (pictures, np.stack(pictures)):
        assert [frame.digest for frame in frames(open_watched(given))] == expected
    assert len(expected) == 300
