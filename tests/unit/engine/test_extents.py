"""What a request that has no room is told to ask for: the most, of its kind, that has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from omnimuse.core.params import AnswerParams, DiffusionParams, FamilyParams
from omnimuse.core.request import Request
from omnimuse.core.spec import SoundLimits
from omnimuse.engine.extents import SAID, SOUND, Area, Length, Nearest, Spoken
from omnimuse.engine.needs import NOTHING, Need
from tests.fakes import FakePipeline, context, limits


@pytest.mark.parametrize(
    ("asked", "room", "nearest"),
    [(5.05, 5.04, 5.0), (5.0, 4.99, 4.9), (0.7, 0.69, 0.6), (9.0, 2.0, 2.0), (5.05, 0.05, 0.0)],
)
def test_the_nearest_length_is_the_longest_of_whole_tenths_of_seconds_that_fits(
    asked: float, room: float, nearest: float
) -> None:
    length = Length(replace(limits({}), sound=SoundLimits(8000)), FakePipeline(context()))
    request = Request("a", "rain", None, DiffusionParams(seconds=asked), FamilyParams())
    found = length.nearest(request, lambda each: (each.params.seconds or 0.0) <= room)
    hint = f"the nearest length that may fit is {nearest:g} seconds" if nearest else "no length of it fits"
    assert found == Nearest(hint, "seconds", round(nearest * 10))


def test_a_video_that_fits_in_no_size_is_to_have_fewer_frames() -> None:
    area = Area(limits({}), FakePipeline(context()))
    request = Request("a", "a fox", None, DiffusionParams(width=32, height=16, num_frames=5), FamilyParams())
    picture = replace(request, params=replace(request.params, num_frames=1))
    assert area.nearest(request, lambda each: False) == Nearest("ask for fewer frames", "num_frames")
    assert area.nearest(picture, lambda each: False) == Nearest("no size of it fits", "height")
    found = area.nearest(request, lambda each: each.size[0] <= 16)
    assert found == Nearest("the nearest size that may fit is 16x8", "height", 128)


def test_an_answer_in_text_alone_takes_no_memory_of_a_sound() -> None:
    """It was to have room for one, and so few were in company."""
    extent = Spoken(limits({}), FakePipeline(context()))
    text = Request("a", "Say hello.", None, DiffusionParams(), AnswerParams(max_tokens=100))
    aloud = replace(text, extra=replace(text.extra, modalities=("text", "audio")))
    assert (extent.guess(text), extent.smaller(text)) == (NOTHING, None)
    assert extent.guess(aloud) == Need(100 * SAID, SOUND)
    small, large = extent.smaller(aloud) or (None, None)
    assert small and large and [extent.of(each) for each in (small, large, aloud)] == [32, 64, 100]
