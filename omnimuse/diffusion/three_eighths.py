"""The Runge-Kutta method of order four by Kutta's 3/8 rule, one evaluation a step, from one of given times to the next.

It moves a sample of one state by what a network says of how it flows; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

STAGES = 4
"""Evaluations between two times."""
THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)


@dataclass
class ThreeEighths:
    """A `sample` on its way through `times`: where the next evaluation looks. `base` is where the last one of the times
    found it, `slopes` are how it flowed where it was looked at since.
    """

    times: Tensor
    base: Tensor
    sample: Tensor
    slopes: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, times: Sequence[float], start: Tensor) -> ThreeEighths:
        """From `start`, which is the sample at the first of the times."""
        return cls(torch.tensor(times, dtype=torch.float32, device=start.device), start, start)

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
