"""The Runge-Kutta method with Kutta's 3/8 rule, one evaluation at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnimuse.diffusion.three_eighths import STAGES, evaluations, moved, time_of


def grown(intervals: int) -> Tensor:
    """What 1 has become at time 1 where everything grows by its own size."""
    times = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)
    base = sample = torch.ones(1, dtype=torch.float64)
    slopes = list[Tensor]()
    for index in range(evaluations(times)):
        slopes.append(sample)
        sample = moved(times, index, base, slopes)
        if len(slopes) == STAGES:
            base, slopes = sample, []
    return sample


def test_twice_as_many_intervals_are_sixteen_times_as_near() -> None:
    near, far = (float((grown(count) - torch.e).abs()) for count in (8, 4))
    assert 12 < far / near < 20


def test_it_looks_at_both_ends_and_twice_between_them() -> None:
    times = torch.tensor([0.0, 0.3, 1.0])
    found = [float(time_of(times, index)) for index in range(evaluations(times))]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3, 0.3 + 0.7 / 3, 0.3 + 1.4 / 3, 1.0])


def test_too_many_slopes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 slopes were given"):
        moved(torch.tensor([0.0, 1.0]), 3, torch.zeros(1), [torch.zeros(1)] * 5)
