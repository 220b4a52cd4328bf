"""What a worker says of a result beside its files."""

from __future__ import annotations

import pytest

from omnimuse.core.output import Result
from omnimuse.core.params import DiffusionParams
from omnimuse.deploy.process import remarked


@pytest.mark.parametrize("within", [False, True])
def test_every_step_of_what_is_drawn_is_told_and_those_of_texts_where_they_are_asked_for(within: bool) -> None:
    steps = {"denoise": (0.1, 0.2), "generate": (0.3,), "paint": (0.4,), "theirs": (0.5,)}
    result = Result("r", "a star", DiffusionParams(), steps=steps, labels={"theirs": "diffuse"})
    told = remarked(result, within)
    assert told.drew == (0.1, 0.2, 0.4, 0.5)
    assert told.steps == (steps if within else {})
