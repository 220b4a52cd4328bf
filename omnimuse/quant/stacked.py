"""Rows of several packings in one layer: what was stored as several tensors, in formats of their own, and is one here.

Queries, keys and values are often one matrix of ours, and in a file values often have more bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.quant.linear import PackedRows
from omnimuse.quant.schemes import Packing, Parts


@dataclass(frozen=True)
class Stacked(Packing):
    """`bands` are rows below each other: the packing of each band, and how many rows it has."""

    bands: tuple[tuple[Packing, int], ...]

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        if outputs != sum(rows for _, rows in self.bands):
            raise ModelError(f"{outputs} rows are not those of {self.bands}: a layer of several packings cannot be cut")
        return {
            named(part, number): tensor
            for number, (packing, rows) in enumerate(self.bands)
            for part, tensor in packing.empty(rows, inputs).items()
        }

    def outputs(self, parts: Parts) -> int:
        return sum(rows for _, rows in self.bands)

    def scales(self, parts: Parts) -> Tensor:
        return torch.cat([band.scales(own).flatten() for (band, _), own in self._apart(parts)])

    def unpack(self, parts: Parts) -> Tensor:
        return torch.cat([band.unpack(own) for (band, _), own in self._apart(parts)])

    def rows(self, parts: Parts, inputs: int) -> StackedRows:
        """Where the loader writes each band."""
        return StackedRows([PackedRows(band, own, inputs) for (band, _), own in self._apart(parts)], self)

    def _apart(self, parts: Parts) -> list[tuple[tuple[Packing, int], Parts]]:
        """Every band, and its own parts by the names that it has for them."""
        found: list[dict[str, Tensor]] = []
        for number, (packing, rows) in enumerate(self.bands):
            names = packing.empty(rows, 0)
            found.append({part: parts[named(part, number)] for part in names})
        return list(zip(self.bands, found, strict=True))


class StackedRows:
    """The rows of a layer of several packings: they are written band by band."""

    def __init__(self, bands: Sequence[PackedRows], stacked: Stacked) -> None:
        self._bands, self._stacked = bands, stacked

    def narrow(self, dim: int, start: int, length: int) -> PackedRows:
        """The band that has exactly these rows; ModelError where none has."""
        at = 0
        for band, (_, rows) in zip(self._bands, self._stacked.bands, strict=True):
            if (dim, start, length) == (0, at, rows):
                return band
            at += rows
        raise ModelError(f"rows {start} to {start + length} along dimension {dim} are no band of {self._stacked.bands}")

    def copy_(self, weights: Tensor) -> None:
        """Nothing is packed so here."""
        raise ModelError(f"weights of {list(weights.shape)} cannot be packed as {self._stacked}; only files hold such")


def named(part: str, band: int) -> str:
    """What a layer calls a part of one of its bands."""
    return f"{part}_{band}" if band else part
