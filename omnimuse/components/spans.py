"""Packed tokens that share a time: what scales, shifts and gates them is made once for all of these.

Networks of videos use it whose every latent frame may have a time of its own. For `Layout` see `attention/layout.py`.

Letters: R rows, P spans, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut


@dataclass(frozen=True)
class Spans:
    """A span is a run of tokens: a whole row, or the tokens of one latent frame of it. `counts` says how many every row
    has; within a row they are equally long.
    """

    layout: Layout
    counts: tuple[int, ...]
    even: bool = field(init=False)
    """Whether rows have equally many tokens and spans. Stored, as compiled code cannot ask `counts` of every row."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "even", self.layout.dense and len(set(self.counts)) == 1)

    def select(self, rows: Sequence[int]) -> Spans:
        return Spans(self.layout.select(rows), tuple(self.counts[row] for row in rows))

    def cut(self, part: Cut) -> Spans:
        return Spans(self.layout.cut(part), self.counts)

    def take(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Of x [P, *] what belongs to the spans of these rows."""
        parts = x.split(self.counts)
        return torch.cat([parts[row] for row in rows])

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x (1 + scale) + shift; x is packed, scale and shift [P, 1, D] hold for every token of a span."""
        return self._affine(x, 1 + scale, shift)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """x times the gate [P, 1, D] of each token's span; x is packed."""
        return self._affine(x, gate, None)

    def _affine(self, x: Tensor, factor: Tensor, offset: Tensor | None) -> Tensor:
        if self.even:
            return _affine(x, factor, offset)
        factors = factor.split(self.counts)
        offsets = [None] * len(factors) if offset is None else offset.split(self.counts)
        return self.layout.pack([_affine(*each) for each in zip(self.layout.unpack(x), factors, offsets, strict=True)])


@dataclass(frozen=True)
class Runs:
    """The same of spans that need not be equally long: their `lengths`, of every row."""

    layout: Layout
    lengths: tuple[tuple[int, ...], ...]
    even: bool = field(init=False)
    """Whether every row is one span; stored, as compiled code cannot ask every row."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "even", all(len(row) == 1 for row in self.lengths))

    def select(self, rows: Sequence[int]) -> Runs:
        return Runs(self.layout.select(rows), tuple(self.lengths[row] for row in rows))

    def take(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Of x [P, *] what belongs to the spans of these rows."""
        parts = x.split([len(row) for row in self.lengths])
        return torch.cat([parts[row] for row in rows])

    def expand(self, per_span: Tensor) -> Tensor:
        """One vector per span, [P, D] -> what broadcasts against the packed tokens."""
        if self.even:
            return self.layout.expand(per_span)
        lengths = [length for row in self.lengths for length in row]
        spans = [each.expand(length, -1) for each, length in zip(per_span.split(1), lengths, strict=True)]
        return torch.cat(spans).unflatten(0, (len(self.lengths) if self.layout.dense else 1, -1))


def _affine(x: Tensor, factor: Tensor, offset: Tensor | None) -> Tensor:
    """x [R, S, D] times factor [P, 1, D] plus offset [P, 1, D], each of them for the P-th part of the tokens.

    By way of [T, D], since compiled code that turned rows into spans would be other code where there are as many.
    """
    if not x.numel():  # a rank may have no token of a short row
        return x
    spans = x.flatten(0, -2).unflatten(0, (len(factor), -1)) * factor  # [P, T/P, D]
    return (spans if offset is None else spans + offset).flatten(0, 1).view(x.shape)
