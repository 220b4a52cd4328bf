"""What a request takes is foretold by small ones of its kind, for every family that lets people choose a size."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.output import Failed
from omnimuse.core.request import Request
from omnimuse.engine.engine import Engine
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.video import DecodeClip
from tests.invariants.conftest import Subject, drain, with_params

SIDE = 896
"""Of frames that are not yet decoded in tiles."""


def large(engine: Engine, subject: Subject) -> Request | None:
    """A request that is larger than those that are tried; None where it must be smaller."""
    step = engine.door.limits.size_multiple
    side = -(-SIDE // step) * step
    for ask in subject.asks():
        with suppress(RequestError):
            return engine.make_request(with_params(ask, width=side, height=side))
    return None


def test_a_size_that_never_fits_is_refused_by_what_small_ones_of_its_kind_take(
    shared: Engine, subject: Subject
) -> None:
    request = large(shared, subject)
    if request is None:
        return
    stages = shared.runner.pipeline.own
    if any(isinstance(stage, DecodeClip) or (isinstance(stage, Loop) and stage.grows) for stage in stages):
        assert not shared.foretelling.doubts(request, 0), "its frames come in tiles, or it would write for long"
        return
    whole, least = shared.space, shared.runner.working(request, shared.space.tokens)
    shared.space = replace(whole, room=least)
    try:
        shared.submit(request)
        [event] = drain(shared)
        with pytest.raises(RequestError, match="GiB at the least") as caught:  # now at the door
            shared.submit(replace(request, id="again"))
    finally:
        shared.space = whole
    assert isinstance(event, Failed) and type(event.error) is RequestError
    assert str(event.error) == str(caught.value)
    assert not shared.runner.states and not shared.scheduler.entries
