"""Tiles over ranks: each decodes some of the tiles of a picture or a video, and all have all of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import Axis


class TileRunner:
    """Decodes every n-th tile here; a rank for which there is none sends nothing."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def __call__(
        self, decode: Callable[[Tensor], Tensor], tiles: Sequence[Tensor], shapes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """What `decode` makes of every tile, in order; `shapes` are those of what it makes."""
        size = self._axis.size
        mine = [decode(tile).reshape(-1) for tile in tiles[self._axis.index :: size]]
        flat = torch.cat(mine) if mine else tiles[0].new_empty(0)
        every = gathered(self._axis, flat, [sum(map(prod, shapes[at::size])) for at in range(size)])
        found: dict[int, Tensor] = {}
        for at, theirs in enumerate(every):
            pieces = theirs.split([prod(shape) for shape in shapes[at::size]])
            for number, piece in zip(range(at, len(tiles), size), pieces, strict=True):
                found[number] = piece.view(tuple(shapes[number]))
        return [found[number] for number in range(len(tiles))]
