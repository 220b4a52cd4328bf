"""Which tokens of a packed tensor belong to which row.

Networks that batch rows pack them with a `Layout`: equal rows are stacked, unequal rows are laid end to end.
Layers that treat every token alike never notice; attention and per-row modulation ask the layout. No weights
and no kernels here.

Letters: R rows, S_i tokens of row i, T tokens of all rows together, D width; * any further dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The token count of every row. A packed tensor is [R, S, *] if they are equal, else [1, T, *]."""

    lengths: tuple[int, ...]
    dense: bool = field(init=False)
    """Whether all rows have the same length, so that they can be stacked."""
    length: int = field(init=False)
    """That length, or 0. Compiled code asks these two alone: from `lengths` it would learn the number of rows."""

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths={self.lengths}: a layout needs at least one row, and every row a token")
        object.__setattr__(self, "dense", len(set(self.lengths)) == 1)
        object.__setattr__(self, "length", self.lengths[0] if self.dense else 0)

    def slices(self) -> tuple[slice, ...]:
        """The place of every row in the T tokens laid end to end."""
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return tuple(slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True))

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Join one [S_i, *] tensor per row into the packed tensor; ValueError if the lengths are others."""
        if tuple(len(part) for part in parts) != self.lengths:
            raise ValueError(f"parts of {[len(part) for part in parts]} tokens do not fit a layout of {self.lengths}")
        if len(parts) == 1:
            return parts[0].unsqueeze(0)  # [1, S, *], a view
        return torch.stack(list(parts)) if self.dense else torch.cat(list(parts)).unsqueeze(0)

    def unpack(self, x: Tensor) -> list[Tensor]:
        """The rows of a packed tensor, [S_i, *] each, as views."""
        return list(x.unbind(0)) if self.dense else list(x[0].split(self.lengths))

    def select(self, rows: Sequence[int]) -> Layout:
        """The layout of only those rows, in the order given."""
        return Layout(tuple(self.lengths[row] for row in rows))

    def take(self, x: Tensor, rows: Sequence[int]) -> Tensor:
        """Only those rows, packed as `select(rows)` says; a copy, which does not keep the others alive."""
        parts = self.unpack(x)
        return parts[rows[0]][None].clone() if len(rows) == 1 else self.select(rows).pack([parts[row] for row in rows])

    def expand(self, per_row: Tensor) -> Tensor:
        """Turn one vector per row, [R, D], into what broadcasts against the packed tensor: [R, 1, D] or [1,
        T, D].
        """
        if self.dense:
            return per_row.unsqueeze(1)
        # Not repeat_interleave: with counts on the device it would make the host wait for them.
        rows = [row.expand(length, -1) for row, length in zip(per_row.split(1), self.lengths, strict=True)]
        return torch.cat(rows).unsqueeze(0)
