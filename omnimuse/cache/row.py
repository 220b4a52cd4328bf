"""What a step cache remembers of one row: one request's evaluations of one network for one guidance branch.

A `Row` is frozen: a step makes the next one, which is put in its place when the whole step has succeeded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Series:
    """A Taylor series, by finite differences, of what skipped blocks add: the value at `step` and how it changes.

    `terms[i]` is its i-th derivative by the step, [S, D]. As TaylorSeer has it (arXiv 2503.06923).
    """

    terms: tuple[Tensor, ...] = ()
    step: int = 0

    def then(self, value: Tensor, step: int, order: int) -> Series:
        """With the `value` of a later `step`; derivatives up to `order`, as far as enough values are known."""
        terms, apart = [value], step - self.step
        for before in self.terms[:order]:
            if before.shape != value.shape:
                break
            terms.append((terms[-1] - before) / apart)
        return Series(tuple(terms), step)

    def at(self, step: int) -> Tensor:
        """The value to expect at `step`."""
        found, ahead = self.terms[0], step - self.step
        for power, term in enumerate(self.terms[1:], start=1):
            found = found + term * (ahead**power / math.factorial(power))
        return found


@dataclass(frozen=True)
class Row:
    """`seen` is what the policy compares with [S, D], `added` what the middle blocks add; `drift` and `growth` are the
    policy's sums since they last ran. `skips` counts the steps in a row that were skipped.
    """

    seen: Tensor | None = None
    added: Series = Series()
    drift: float = 0.0
    growth: float = 1.0
    skips: int = 0
    computed: int = 0
    skipped: int = 0

    @property
    def nbytes(self) -> int:
        """The memory it takes."""
        return sum(each.nbytes for each in (self.seen, *self.added.terms) if each is not None)

    def to(self, device: torch.device) -> Row:
        """Called when a request is paused, and when it goes on."""
        seen = None if self.seen is None else self.seen.to(device)
        terms = tuple(term.to(device) for term in self.added.terms)
        return replace(self, seen=seen, added=replace(self.added, terms=terms))

    def ran(self, seen: Tensor | None, added: Series) -> Row:
        """The middle blocks have run."""
        return Row(seen, added, computed=self.computed + 1, skipped=self.skipped)

    def missed(self, seen: Tensor | None, drift: float, growth: float) -> Row:
        """They have not."""
        return replace(self, seen=seen, drift=drift, growth=growth, skips=self.skips + 1, skipped=self.skipped + 1)

    def emptied(self) -> Row:
        """After the last step: without tensors. The counts stay."""
        return Row(computed=self.computed, skipped=self.skipped)
