"""What step caches are fitted to: numbers of how a model's blocks behave from step to step, and the fits.

An `Observer` stands inside a `StepCache`, sees every run of blocks and counts it; of runs of the whole stack it notes
by how much the input and what the blocks add changed since the step before. `engine/calibrate.py` draws and fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnimuse.layers.stack import Block, Conditioning, Memory, StackRunner

DEGREES = (1, 2, 3, 4)
"""Of polynomials that are tried; the published ones are of the fourth."""


@dataclass(frozen=True)
class Seen:
    """One row at one step: relative L1 change of the first block's probe and of what the blocks add, and by how much
    what they add grew (the mean over tokens of the ratio of norms). `row` tells rows apart.
    """

    row: int
    step: int
    steps: int
    probe: float
    added: float
    growth: float


class Observer:
    """A stack runner around `inner` that changes nothing."""

    name = "observer"

    def __init__(self, inner: StackRunner, blocks: int) -> None:
        self.inner = inner
        self.blocks = blocks
        self.seen: list[Seen] = []
        self.work = 0  # blocks that ran, for a row each
        self._rows = 0

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        self.work += len(blocks) * len(cond.layout.lengths)
        out = self.inner(blocks, hidden, cond, memories)
        if memories is not None and len(blocks) == self.blocks:
            probes, layout = cond.layout.unpack(self.inner.probe(blocks, hidden, cond)), cond.layout
            added = [after - before for before, after in zip(layout.unpack(hidden), layout.unpack(out), strict=True)]
            for memory, probe, new in zip(memories, probes, added, strict=True):
                self._note(memory, probe.clone(), new)
        return out

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)

    def _note(self, memory: Memory, probe: Tensor, added: Tensor) -> None:
        if self.name in memory.data:
            row, old_probe, old_added = memory.data[self.name]
            norms = added.float().norm(dim=-1) / old_added.float().norm(dim=-1).clamp_min(1e-8)
            found = torch.stack([_change(old_probe, probe), _change(old_added, added), norms.mean()]).tolist()
            self.seen.append(Seen(row, memory.step, memory.steps, *found))
        else:
            row, self._rows = self._rows, self._rows + 1
        memory.data[self.name] = (row, probe, added)


def _change(old: Tensor, new: Tensor) -> Tensor:
    return (new - old).abs().float().mean() / old.abs().float().mean()


def polynomial(seen: Sequence[Seen]) -> tuple[float, ...]:
    """The coefficients, highest power first, that tell the change of what the blocks add from that of the probe.

    Of the degree that errs least on rows that it was not fitted to (of equal ones, the lowest), of those that hold for
    changes somewhat smaller and larger than were seen, too: one that falls below zero there would skip every step from
    the first such change on. Where none holds, the mean.
    """
    rows = sorted({each.row for each in seen})
    parts = {row: _points([each for each in seen if each.row == row]) for row in rows}
    errors = dict.fromkeys(DEGREES, 0.0)
    for left_out in rows if len(rows) > 1 else []:
        x, y = np.concatenate([parts[row] for row in rows if row != left_out], axis=1)
        probe, added = parts[left_out]
        for degree in DEGREES:
            errors[degree] += float(np.abs(np.polyval(_fit(x, y, degree), probe) - added).mean())
    x, y = np.concatenate(list(parts.values()), axis=1)
    beyond = np.linspace(0.5 * x.min(), 2 * x.max(), 100)
    holding = [degree for degree in DEGREES if np.polyval(_fit(x, y, degree), beyond).min() >= 0]
    return tuple(float(value) for value in _fit(x, y, min(holding, key=lambda degree: errors[degree], default=0)))


def _points(seen: Sequence[Seen]) -> np.ndarray:
    return np.array([[each.probe for each in seen], [each.added for each in seen]])


def _fit(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    """Least squares, of no higher degree than there are different points for."""
    return np.polyfit(x, y, min(degree, len(np.unique(x)) - 1))


def ratios(seen: Sequence[Seen]) -> tuple[float, ...]:
    """By how much what the blocks add grows at every step, on average; the first is 1, as nothing comes before it.

    Rows of fewer steps than others count where their steps lie among those.
    """
    steps = max(each.steps for each in seen)
    found: defaultdict[int, list[float]] = defaultdict(list)
    for each in seen:
        found[round(each.step * (steps - 1) / max(each.steps - 1, 1))].append(each.growth)
    return tuple(float(np.mean(found[step])) if found[step] else 1.0 for step in range(steps))
