"""Tiles over ranks: every rank decodes some of a picture's tiles, and all have all of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import Axis


class TileRunner:
    """Decodes every n-th tile here; `scale` is how many pixels a cell has along a side, of three channels."""

    def __init__(self, axis: Axis, scale: int) -> None:
        self._axis = axis
        self._scale = scale

    def __call__(self, decode: Callable[[Tensor], Tensor], tiles: Sequence[Tensor]) -> list[Tensor]:
        size = self._axis.size
        shapes = [(1, 3, tile.shape[-2] * self._scale, tile.shape[-1] * self._scale) for tile in tiles]
        mine = [decode(tile).reshape(-1) for tile in tiles[self._axis.index :: size]]
        flat = torch.cat(mine) if mine else tiles[0].new_empty(0)
        every = gathered(self._axis, flat, [sum(map(prod, shapes[at::size])) for at in range(size)])
        found: dict[int, Tensor] = {}
        for at, theirs in enumerate(every):
            pieces = theirs.split([prod(shape) for shape in shapes[at::size]])
            found.update({at + size * n: piece.view(shapes[at + size * n]) for n, piece in enumerate(pieces)})
        return [found[number] for number in range(len(tiles))]
