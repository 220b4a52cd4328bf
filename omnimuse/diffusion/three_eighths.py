"""The Runge-Kutta method of order four by Kutta's 3/8 rule, one evaluation a step, from one of given times to the next.

It moves a sample of one state by what a network says of how it flows; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STAGES = 4
"""Evaluations between two times."""
THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)


class ThreeEighths:
    """A `sample` on its way through `times`: where evaluation `index` looks, `step` moves it on to the next."""

    def __init__(self, times: Sequence[float], start: Tensor) -> None:
        self.times = torch.tensor(times, dtype=torch.float32, device=start.device)
        self.base = self.sample = start
        self.slopes: list[Tensor] = []

    @property
    def evaluations(self) -> int:
        """How many there are in all."""
        return STAGES * (len(self.times) - 1)

    def time(self, index: int) -> Tensor:
        """When evaluation `index` looks at the sample, float32 []."""
        interval, stage = divmod(index, STAGES)
        begin, end = self.times[interval], self.times[interval + 1]
        return end if stage == STAGES - 1 else begin + (end - begin) * THIRDS[stage]

    def step(self, index: int, slope: Tensor) -> None:
        """Move on by how the sample flows where evaluation `index` looked. They come in order, each exactly once."""
        interval, stage = divmod(index, STAGES)
        span = self.times[interval + 1] - self.times[interval]
        self.slopes.append(slope)
        match self.slopes:
            case [first]:
                self.sample = self.base + span * first / 3
            case [first, second]:
                self.sample = self.base + span * (second - first / 3)
            case [first, second, third]:
                self.sample = self.base + span * (first - second + third)
            case [first, second, third, fourth]:
                self.sample = self.base + (first + 3 * (second + third) + fourth) * span / 8
                self.base, self.slopes = self.sample, []
        assert len(self.slopes) == (stage + 1) % STAGES, "every evaluation once, and in order"

    def to(self, device: torch.device) -> ThreeEighths:
        """The same on another device."""
        found = ThreeEighths(self.times.tolist(), self.sample.to(device))
        found.base, found.slopes = self.base.to(device), [slope.to(device) for slope in self.slopes]
        return found
