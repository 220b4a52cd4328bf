"""Brownian motion that anybody can look at anywhere, and always sees the same: the noise of stochastic solvers.

Values come from a seed alone, whatever is asked and in which order, by Levy's construction: the motion at the middle of
an interval is drawn given its ends, from numbers that belong to that interval (its place in the binary tree). The
numbers are those of torchsde's `BrownianInterval` with `halfway_tree`, which diffusers uses; sums are taken in float64,
of numbers that are kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

DIGITS = 6
"""Times are rounded to so many decimal places; a motion has no finer detail."""
POOL = 24
"""Words of entropy that the numbers of an interval are mixed from."""


@dataclass(frozen=True)
class _Interval:
    """A node of the tree: from `start` to `end`, the left half of the node above it or, if `right`, the other one.

    `left` is what the motion gains in that left half, float32; of the whole it is all. `key` counts the nodes of its
    `depth` from the left.
    """

    start: float
    end: float
    left: Tensor
    right: bool = False
    key: int = 0
    depth: int = 0

    def entered(self, before: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """Where the motion has come to at its start, and what it gains in it, given both of the node above: float64."""
        left = self.left.double()
        return (before + left, gain - left) if self.right else (before, left)


class Brownian:
    """One motion of `shape` from `start` (where it is 0) to `end`, by `seed`. On the CPU; moves nowhere.

    It remembers the way to where it looked last, as the next look is near: a tensor of float32 for every node.
    """

    def __init__(self, seed: int, start: float, end: float, shape: Sequence[int]) -> None:
        self._seed, self._shape = seed, tuple(shape)
        first = np.random.SeedSequence(entropy=seed, pool_size=POOL).generate_state(3)[0]
        whole = self._normal(int(first)) * sqrt(end - start)
        self._way = [_Interval(round(start, DIGITS), round(end, DIGITS), whole.float())]

    def between(self, earlier: float, later: float) -> Tensor:
        """What the motion gains from `earlier` to `later`, divided by the root of the time: float32, of unit variance.

        Times outside are taken as the ends, for the gain alone.
        """
        gain = self._at(later) - self._at(earlier)
        return (gain / sqrt(later - earlier)).float()

    def _at(self, time: float) -> Tensor:
        """Where the motion is at `time`: float64."""
        time = min(max(round(time, DIGITS), self._way[0].start), self._way[0].end)
        while not self._way[-1].start <= time <= self._way[-1].end:
            self._way.pop()
        before = gain = torch.zeros(self._shape, dtype=torch.float64, device="cpu")
        for node in self._way:
            before, gain = node.entered(before, gain)
        while (node := self._way[-1]).start != time != node.end:
            self._way.append(self._half(node, gain, time))
            before, gain = self._way[-1].entered(before, gain)
        return before if time == node.start else before + gain

    def _half(self, node: _Interval, gain: Tensor, time: float) -> _Interval:
        """The half of `node`, in which the motion has that `gain`, in which `time` is; the left one where that is the
        middle.
        """
        middle = round(0.5 * (node.end + node.start), DIGITS)
        left, right, share = middle - node.start, node.end - middle, 1 / (node.end - node.start)
        words = np.random.SeedSequence(entropy=self._seed, spawn_key=(node.key, node.depth), pool_size=POOL)
        drawn = left * share * gain + sqrt(left * right * share) * self._normal(int(words.generate_state(4)[0]))
        key, depth = 2 * node.key, node.depth + 1
        if time <= middle:
            return _Interval(node.start, middle, drawn.float(), False, key, depth)
        return _Interval(middle, node.end, drawn.float(), True, key + 1, depth)

    def _normal(self, seed: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(self._shape, dtype=torch.float32, device="cpu", generator=generator).double()
