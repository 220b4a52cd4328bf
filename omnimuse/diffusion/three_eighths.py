"""The Runge-Kutta method of order four by Kutta's 3/8 rule, one evaluation a step, from one of given times to the next.

Plain functions: who uses them keeps the sample where an interval began, and how it flowed where it was looked at since.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

STAGES = 4
"""Evaluations between two times."""
THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)


def evaluations(times: Tensor) -> int:
    """How many there are in all, from the first to the last of the times, float32 [*]."""
    return STAGES * (len(times) - 1)


def time_of(times: Tensor, index: int) -> Tensor:
    """When evaluation `index` looks at the sample, float32 []."""
    interval, stage = divmod(index, STAGES)
    begin, end = times[interval], times[interval + 1]
    return end if stage == STAGES - 1 else begin + (end - begin) * THIRDS[stage]


def moved(times: Tensor, index: int, base: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """Where the sample is behind evaluation `index`: `base` is where the interval found it, `slopes` how it flowed
    where the evaluations of the interval looked, this one the last.
    """
    span = times[index // STAGES + 1] - times[index // STAGES]
    match slopes:
        case [first]:
            return base + span * first / 3
        case [first, second]:
            return base + span * (second - first / 3)
        case [first, second, third]:
            return base + span * (first - second + third)
        case [first, second, third, fourth]:
            return base + (first + 3 * (second + third) + fourth) * span / 8
    raise ValueError(f"an interval has {STAGES} evaluations, and {len(slopes)} slopes were given")
