"""The Runge-Kutta method with Kutta's 3/8 rule, one evaluation at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnimuse.diffusion.three_eighths import ThreeEighths
from omnimuse.pipeline.state import park, wake


def grown(intervals: int) -> Tensor:
    """What 1 has become at time 1 where everything grows by its own size."""
    solver = ThreeEighths.of([place / intervals for place in range(intervals + 1)], torch.ones(1, dtype=torch.float64))
    for index in range(solver.evaluations):
        solver.step(index, solver.sample)
    return solver.sample


def test_twice_as_many_intervals_are_sixteen_times_as_near() -> None:
    near, far = (float((grown(count) - torch.e).abs()) for count in (8, 4))
    assert 12 < far / near < 20


def test_it_looks_at_both_ends_and_twice_between_them() -> None:
    solver = ThreeEighths.of([0.0, 0.3, 1.0], torch.zeros(1))
    times = [float(solver.time(index)) for index in range(solver.evaluations)]
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3, 0.3 + 0.7 / 3, 0.3 + 1.4 / 3, 1.0])


def test_an_evaluation_that_is_left_out_is_noticed() -> None:
    solver = ThreeEighths.of([0.0, 1.0], torch.zeros(1))
    with pytest.raises(AssertionError, match="in order"):
        solver.step(1, torch.zeros(1))


def test_parked_and_woken_in_between_it_goes_on() -> None:
    solver = ThreeEighths.of([0.0, 1.0], torch.ones(1))
    for index in range(solver.evaluations):
        solver.step(index, solver.sample)
        solver = wake(park(solver))
    assert float(solver.sample) == pytest.approx(float(grown(1)))
