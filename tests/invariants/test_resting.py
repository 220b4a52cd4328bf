"""Weights that leave memory and come back while something is drawn change no bit of it: for every pipeline."""

from __future__ import annotations

import pytest
import torch

from omnimuse.engine.engine import Engine
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.invariants.conftest import Subject, drain, nap, of, outputs, submit, tick

pytestmark = [of((*FAMILIES, *ALLROUNDERS)), pytest.mark.crossed]


@pytest.mark.shows("sleep", wishes=True)
def test_who_has_begun_when_the_weights_leave_is_drawn_to_the_bit(subject: Subject, shared: Engine) -> None:
    def drawn(*, rests: bool) -> list[torch.Tensor]:
        shared.runner.memo.clear()
        ids = submit(shared, *subject.asks())
        events = [event for _ in range(2) for event in tick(shared)]
        if rests:
            nap(shared)
        events += drain(shared)
        return [outputs(events, id_) for id_ in ids]

    for found, expected in zip(drawn(rests=True), drawn(rests=False), strict=True):
        assert torch.equal(found, expected)
