"""Rows of two parts whose tokens are not equally wide, as one sequence, which is how runners of blocks want them: the
tokens of the wide part, then those of the narrow one, of which several fill a line.

For `Layout` see `attention/layout.py`. Letters: B batch, S tokens, D width of the wide part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut


class OnePart(Protocol):
    """What blocks need of one of the two parts, as other conditioning."""

    @property
    def layout(self) -> Layout: ...

    @property
    def dense(self) -> bool: ...

    def select(self, rows: Sequence[int]) -> Self: ...


Part = TypeVar("Part", bound=OnePart)


@dataclass(frozen=True)
class BothParts(Generic[Part]):
    """What every block receives beside the hidden states: what it needs of each part."""

    layout: Layout  # of both, in lines as wide as a token of the wide part
    wide: Part
    narrow: Part

    @staticmethod
    def of(wide: Part, narrow: Part, each: int) -> BothParts[Part]:
        """A line takes `each` narrow tokens."""
        lengths = zip(wide.layout.lengths, narrow.layout.lengths, strict=True)
        return BothParts(Layout(tuple(own + -(-other // each) for own, other in lengths)), wide, narrow)

    @property
    def dense(self) -> bool:
        return self.wide.dense and self.narrow.dense

    def select(self, rows: Sequence[int]) -> BothParts[Part]:
        return BothParts(self.layout.select(rows), self.wide.select(rows), self.narrow.select(rows))

    def cut(self, part: Cut) -> BothParts[Part] | None:
        """None: narrow tokens stand in lines of several, which no part of the tokens can be cut from."""
        return None

    def join(self, wides: Tensor, narrows: Tensor) -> Tensor:
        """Tokens of both, packed by their layouts -> lines [B, *, D], packed by `layout`."""
        wide, narrow = self.wide.layout, self.narrow.layout
        if wide.dense and narrow.dense:
            return torch.cat([wides, lines(narrows, wides.shape[-1])], dim=1)
        rows = zip(wide.unpack(wides), narrow.unpack(narrows), strict=True)
        return self.layout.pack([torch.cat([one, lines(other[None], one.shape[-1])[0]]) for one, other in rows])

    def split(self, hidden: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The reverse of `join`; narrow tokens are `width` wide."""
        wide, narrow = self.wide.layout, self.narrow.layout
        if wide.dense and narrow.dense:
            wides, rest = hidden[:, : wide.length], hidden[:, wide.length :]
            return wides, rest.reshape(len(rest), -1, width)[:, : narrow.length]
        own, others = list[Tensor](), list[Tensor]()
        for row, length, count in zip(self.layout.unpack(hidden), wide.lengths, narrow.lengths, strict=True):
            own.append(row[:length])
            others.append(row[length:].reshape(-1, width)[:count])
        return wide.pack(own), narrow.pack(others)


def lines(narrows: Tensor, width: int) -> Tensor:
    """Tokens [B, S, *] -> lines [B, *, width] of several each, the last one filled up with zeros."""
    each = width // narrows.shape[-1]
    return F.pad(narrows, (0, 0, 0, -narrows.shape[1] % each)).reshape(len(narrows), -1, width)
