"""TeaCache: skip a stack of blocks while its input has changed little since the last step that ran it.

Method: "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108). A build
pass sets a `TeaCache` as a stack's runner, around whatever runner was there. It decides for every row alone
and remembers in that row's `Memory`, so requests at different steps share a batch. It knows no model:
coefficients come from the model's spec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.errors import ConfigError
from omnimuse.layers.stack import Block, Conditioning, Memory, PlainRunner, StackRunner


@dataclass
class TeaMemory:
    """What one row remembers: its last probe, what the blocks last added, the drift since, and counts."""

    probe: Tensor | None = None  # [S, D]
    residual: Tensor | None = None  # [S, D]
    drift: float = 0.0
    computed: int = 0
    skipped: int = 0

    def to(self, device: torch.device) -> TeaMemory:
        probe = None if self.probe is None else self.probe.to(device)
        residual = None if self.residual is None else self.residual.to(device)
        return TeaMemory(probe, residual, self.drift, self.computed, self.skipped)

    def remember(self, probe: Tensor, residual: Tensor) -> None:
        """The blocks have run."""
        self.probe = probe.clone()  # a view would keep the whole batch alive
        self.residual = residual
        self.drift = 0.0
        self.computed += 1

    def skip(self, probe: Tensor, drift: float) -> Tensor:
        """The blocks have not run: what to add instead."""
        assert self.residual is not None
        self.probe = probe.clone()
        self.drift = drift
        self.skipped += 1
        return self.residual

    def clear(self) -> None:
        """Let go of the tensors; the counts stay."""
        self.probe, self.residual, self.drift = None, None, 0.0


class TeaCache:
    """A stack runner around `inner` (default: the plain one) that skips it, row by row.

    At each step the relative L1 change of a row's probe is rescaled by a polynomial (`coefficients`, highest
    power first) and added to the row's drift. While the drift stays below `threshold` the row's output is its
    input plus what the blocks added when they last ran. The first and the last step always run. A threshold
    of 0 never skips, nor looks.
    """

    def __init__(
        self,
        threshold: float,
        coefficients: Sequence[float] = (1.0, 0.0),
        inner: StackRunner | None = None,
        name: str = "teacache",
    ) -> None:
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"teacache threshold={threshold} must be a number >= 0; 0 is off, 0.1 to 0.5 is usual")
        if not coefficients or not all(map(math.isfinite, coefficients)):
            raise ConfigError(f"teacache coefficients={coefficients} must be finite numbers, at least one")
        self.threshold = threshold
        self.coefficients = tuple(coefficients)
        self.inner = inner or PlainRunner()
        self.name = name

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        if memories is None or self.threshold == 0:
            return self.inner(blocks, hidden, cond, memories)
        teas = [self._recall(memory) for memory in memories]
        probes = cond.layout.unpack(self.probe(blocks, hidden, cond))
        drifts = self._drifts(teas, probes, memories)
        due = [row for row, drift in enumerate(drifts) if not drift < self.threshold]
        inputs = cond.layout.unpack(hidden)
        outputs = self._compute(blocks, hidden, cond, memories, due) if due else {}
        for row, tea in enumerate(teas):  # only now, so that a step that failed can be tried again
            if row in outputs:
                tea.remember(probes[row], outputs[row] - inputs[row])
            else:
                outputs[row] = inputs[row] + tea.skip(probes[row], drifts[row])
            if _is_last(memories[row]):
                tea.clear()
        return cond.layout.pack([outputs[row] for row in range(len(teas))])

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)

    def _compute(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory],
        rows: list[int],
    ) -> dict[int, Tensor]:
        """Run the blocks for those rows only: row -> output [S, D]."""
        if len(rows) < len(memories):
            hidden, cond = cond.layout.take(hidden, rows), cond.select(rows)
            memories = [memories[row] for row in rows]
        output = self.inner(blocks, hidden, cond, memories)
        return dict(zip(rows, cond.layout.unpack(output), strict=True))

    def _drifts(self, teas: Sequence[TeaMemory], probes: Sequence[Tensor], memories: Sequence[Memory]) -> list[float]:
        """Each row's drift with this step's change; infinite for a row that must run in any case."""
        changes = _relative_changes([tea.probe for tea in teas], probes)
        return [
            math.inf
            if memory.step <= 0 or _is_last(memory) or tea.residual is None
            else tea.drift + self._rescale(change)
            for tea, memory, change in zip(teas, memories, changes, strict=True)
        ]

    def _rescale(self, change: float) -> float:
        """The polynomial by Horner's rule; a fit may dip below zero near zero, a drift cannot."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return max(value, 0.0)

    def _recall(self, memory: Memory) -> TeaMemory:
        tea = memory.data.setdefault(self.name, TeaMemory())
        assert isinstance(tea, TeaMemory)
        return tea


def _is_last(memory: Memory) -> bool:
    return memory.step >= memory.steps - 1


def _relative_changes(old: Sequence[Tensor | None], new: Sequence[Tensor]) -> list[float]:
    """mean|new - old| / mean|old| of each row, infinite where there is nothing to compare with.

    One transfer to the host for all rows.
    """
    changes = [
        torch.full((), math.inf, device=after.device)
        if before is None or before.shape != after.shape
        else (after - before).abs().float().mean() / before.abs().float().mean()
        for before, after in zip(old, new, strict=True)
    ]
    return [float(change) for change in torch.stack(changes).tolist()]
