"""Which tokens of a packed tensor belong to which row, and of a row that ranks share, which are here.

Networks that batch rows pack them with a `Layout`: equal rows are stacked, unequal rows are laid end to end.
Layers that treat every token alike never notice; attention and per-row modulation ask the layout. No weights,
no kernels and no communication here.

Letters: R rows, S_i tokens of row i, T tokens of all rows together, D width; * any further dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnimuse.core.plans import Cut

Made = TypeVar("Made")


@dataclass(frozen=True)
class Layout:
    """The token count of every row. A packed tensor is [R, S, *] if they are equal, else [1, T, *].

    Where ranks share the tokens, each has an equal part of every segment: `segments` are the lengths, for every row, of
    the runs of tokens that blocks tell apart (left out: a row is one). A layout that was `cut` knows the `whole` one
    and, in `everywhere`, the lengths of its rows on all ranks.
    """

    lengths: tuple[int, ...]
    segments: tuple[tuple[int, ...], ...] = ()
    part: Cut | None = None
    whole: Layout | None = field(default=None, repr=False)
    everywhere: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    dense: bool = field(init=False)
    """Whether all rows have the same length, on every rank, so that they can be stacked."""
    made: dict[Hashable, Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What was `kept`."""
    length: int = field(init=False)
    """That length, or 0. Compiled code asks these two alone: from `lengths` it would learn the number of rows."""

    def __post_init__(self) -> None:
        least = 1 if self.part is None else 0
        if not self.lengths or min(self.lengths) < least:
            raise ValueError(f"lengths={self.lengths}: a layout needs at least one row, and every row a token")
        if self.segments and tuple(map(sum, self.segments)) != self.lengths:
            raise ValueError(f"segments={self.segments} do not make up rows of {self.lengths} tokens")
        alike = self.lengths if self.whole is None else self.whole.runs
        object.__setattr__(self, "dense", len(set(alike)) == 1)
        object.__setattr__(self, "length", self.lengths[0] if self.dense else 0)

    @property
    def runs(self) -> tuple[tuple[int, ...], ...]:
        """The segments of every row."""
        return self.segments or tuple((length,) for length in self.lengths)

    def slices(self) -> tuple[slice, ...]:
        """The place of every row in the T tokens laid end to end."""
        ends = [sum(self.lengths[: i + 1]) for i in range(len(self.lengths))]
        return tuple(slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True))

    def ends(self, device: torch.device) -> Tensor:
        """Where rows begin and end among the T tokens, as kernels for packed rows take it: int32 [R + 1] on `device`.

        Made there number by number: an upload would make the host wait.
        """
        ends = [sum(self.lengths[:row]) for row in range(len(self.lengths) + 1)]
        return self.kept(
            device, lambda: torch.cat([torch.full((1,), end, dtype=torch.int32, device=device) for end in ends])
        )

    def kept(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once for each `key`: every block of a forward asks for the same."""
        if key not in self.made:
            self.made[key] = make()
        found: Made = self.made[key]
        return found

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
        if self.whole is not None and self.part is not None:
            return self.whole.select(rows).cut(self.part)
        segments = tuple(self.segments[row] for row in rows) if self.segments else ()
        return Layout(tuple(self.lengths[row] for row in rows), segments)

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

    # -- a part of every row ------------------------------------------------------------------------------------------

    def cut(self, part: Cut) -> Layout:
        """The layout of the tokens that `part` has: its share of every segment of every row."""
        return self._cuts(part.of, [part.at])[0]

    def share(self, x: Tensor, part: Cut) -> Tensor:
        """The tokens of a tensor packed by this layout that `part` has, packed by `cut(part)`."""
        rows = []
        for row, segments in zip(self.unpack(x), self.runs, strict=True):
            runs = [run[slice(*part.span(len(run)))] for run in row.split(segments)]
            rows.append(runs[0] if len(runs) == 1 else torch.cat(runs))
        return self.cut(part).pack(rows)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The reverse of `share`: all parts, in order, each packed by its cut -> the packed tensor."""
        rows: list[list[list[Tensor]]] = []  # by part, row and segment
        for cut, x in zip(self._cuts(len(parts), range(len(parts))), parts, strict=True):
            rows.append([list(row.split(runs)) for row, runs in zip(cut.unpack(x), cut.runs, strict=True)])
        joined = []
        for row, runs in enumerate(self.runs):
            joined.append(torch.cat([every[row][segment] for segment in range(len(runs)) for every in rows]))
        return self.pack(joined)

    def _cuts(self, of: int, wanted: Sequence[int]) -> list[Layout]:
        """Some of the layouts that this one is cut into."""
        parts = [Cut(at, of) for at in range(of)]
        runs = [tuple(tuple(map(part.share, segments)) for segments in self.runs) for part in parts]
        lengths = tuple(tuple(map(sum, segments)) for segments in runs)
        return [Layout(lengths[at], runs[at], parts[at], self, lengths) for at in wanted]
