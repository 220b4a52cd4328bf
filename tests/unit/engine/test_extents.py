"""What a request that has no room is told to ask for: the most, of its kind, that has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.request import Request
from omnimuse.core.spec import SoundLimits
from omnimuse.engine.extents import Length, Nearest
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
