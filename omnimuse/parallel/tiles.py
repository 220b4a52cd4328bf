"""Tiles over ranks: each decodes some of the tiles of a picture or a video, and all have all of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import Axis
from omnimuse.parallel.shortage import is_short


class TileRunner:
    """Decodes every n-th tile here; a rank for which there is none sends nothing."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def __call__(
        self, decode: Callable[[Tensor], Tensor], tiles: Sequence[Tensor], shapes: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """What `decode` makes of every tile, in order; `shapes` are those of what it makes."""
        size = self._axis.size
        mine = self._decoded(decode, tiles[self._axis.index :: size])
        return shared(self._axis, mine, [number % size for number in range(len(tiles))], shapes, tiles[0])

    def _decoded(self, decode: Callable[[Tensor], Tensor], tiles: Sequence[Tensor]) -> list[Tensor]:
        """What is decoded here. Where memory ran out on any rank, all of them fail with that, and none waits."""
        mine: list[Tensor] = []
        try:
            mine = [decode(tile) for tile in tiles]
        except (MemoryError, RuntimeError) as error:
            is_short(self._axis, error)
            raise
        if is_short(self._axis, None):
            raise torch.OutOfMemoryError("another rank ran out of memory")
        return mine


def shared(
    axis: Axis, mine: Sequence[Tensor], owners: Sequence[int], shapes: Sequence[Sequence[int]], like: Tensor
) -> list[Tensor]:
    """Every piece of work on every rank, in order: `owners` says which rank has made each, and `mine` is what this one
    has, of the format of `like`.
    """
    flat = torch.cat([piece.reshape(-1) for piece in mine]) if mine else like.new_empty(0)
    theirs = [[number for number, owner in enumerate(owners) if owner == at] for at in range(axis.size)]
    every = gathered(axis, flat, [sum(prod(shapes[number]) for number in numbers) for numbers in theirs])
    found: dict[int, Tensor] = {}
    for numbers, pieces in zip(theirs, every, strict=True):
        sizes = [prod(shapes[number]) for number in numbers]
        for number, piece in zip(numbers, pieces.split(sizes), strict=True):
            found[number] = piece.view(tuple(shapes[number]))
    return [found[number] for number in range(len(owners))]


def shapes_told(axis: Axis, mine: Sequence[Tensor], owners: Sequence[int], like: Tensor) -> list[list[int]]:
    """The shapes of all pieces, of as many dimensions as `like`, where only their owners know them."""
    told = like.new_tensor([list(piece.shape) for piece in mine], dtype=torch.int64)
    sizes = [[like.ndim]] * len(owners)
    return [shape.tolist() for shape in shared(axis, [told] if mine else [], owners, sizes, told)]
