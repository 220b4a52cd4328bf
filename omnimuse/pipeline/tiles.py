"""Decoding in tiles: a picture is decoded in squares that overlap and are blended, so that memory is that of one.
Videos have tiles of their own (`video.py`), which are blended alike.

The squares, and the arithmetic where they meet, are those of diffusers with `enable_tiling`. Decoded they may be by
several ranks (`parallel/tiles.py`): how is what `run` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from omnimuse.core.config import LEAST_TILE
from omnimuse.core.spec import Size

Decode = Callable[[Tensor], Tensor]
"""Latents [1, C, h, w] -> pixels [1, 3, H, W]."""

Run = Callable[[Decode, Sequence[Tensor], Sequence[Sequence[int]]], list[Tensor]]
"""How several squares are decoded, in order; told are the shapes of what is made of them."""

OVERLAP = 0.25
"""The part of a tile that the next one has, too."""


def in_turn(decode: Decode, tiles: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """One after the other."""
    return [decode(tile) for tile in tiles]


@dataclass(frozen=True)
class Tiling:
    """Tiles of `cells` latent cells a side, which are `pixels` pixels; a smaller picture is decoded as a whole. The
    next one begins where `overlap`, a part of it, is left.

    So many `ranks` decode them. Those that are our `own` are not the reference's.
    """

    cells: int
    pixels: int
    run: Run = in_turn
    ranks: int = 1
    overlap: float = OVERLAP
    own: bool = False

    @property
    def strides(self) -> Size:
        """The pixels of a side, and from the beginning of one tile to that of the next."""
        return self.pixels, int(self.cells * (1 - self.overlap)) * self._scale

    @property
    def smaller(self) -> Tiling | None:
        """Tiles of half the side; None where these are as small as they get."""
        half = self.cells // 2
        pixels = half * self._scale
        return replace(self, cells=half, pixels=pixels, own=True) if pixels >= LEAST_TILE else None

    @property
    def halves(self) -> list[Tiling]:
        """These tiles and all smaller ones, each of half the side of those before."""
        return [self, *(self.smaller.halves if self.smaller else [])]

    def decode(self, decode: Decode, latents: Tensor) -> Tensor:
        """Latents [1, C, h, w] -> pixels [1, 3, H, W], by tiles where a side is longer than one.

        Beside what is made there are two rows of tiles at most, unless ranks share them.
        """
        height, width = latents.shape[-2:]
        if max(height, width) <= self.cells:
            return decode(latents)
        step = int(self.cells * (1 - self.overlap))
        blended = int(self.pixels * self.overlap)
        kept = self.pixels - blended
        lines = [latents[..., top : top + self.cells, :] for top in range(0, height, step)]
        squares = [[line[..., left : left + self.cells] for left in range(0, width, step)] for line in lines]
        high, wide = (sum(min(kept, side * self._scale) for side in sides) for sides in _sides(squares))
        made, above = latents.new_empty(0), list[Tensor]()
        for number, row in enumerate(self._rows(decode, squares)):
            if not number:
                made = row[0].new_empty(*row[0].shape[:2], high, wide)
            for place, piece in enumerate(row):
                if above:
                    blend(above[place], piece, blended, dim=2)
                if place:
                    blend(row[place - 1], piece, blended, dim=3)
                part = piece[..., :kept, :kept]
                made[..., number * kept :, place * kept :][..., : part.shape[2], : part.shape[3]] = part
            above = row
        return made

    @property
    def _scale(self) -> int:
        return self.pixels // self.cells

    def _rows(self, decode: Decode, squares: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """The rows of `squares`, decoded: one after the other, or all at once by ranks, which have more to share so."""
        across = len(squares[0])
        for rows in [list(chain.from_iterable(squares))] if self.ranks > 1 else squares:
            shapes = [(1, 3, square.shape[-2] * self._scale, square.shape[-1] * self._scale) for square in rows]
            decoded = self.run(decode, rows, shapes)
            while decoded:
                yield decoded[:across]
                del decoded[:across]


def _sides(squares: Sequence[Sequence[Tensor]]) -> tuple[list[int], list[int]]:
    """How high the rows of latents are, and how wide the columns."""
    return [row[0].shape[-2] for row in squares], [square.shape[-1] for square in squares[0]]


def blend(before: Tensor, piece: Tensor, overlap: int, dim: int) -> None:
    """Fade, in place, from the end of `before` into the beginning of `piece` along `dim` over at most `overlap`."""
    length = min(before.shape[dim], piece.shape[dim], overlap)
    if length == 0:
        return
    shape = [-1 if axis == dim else 1 for axis in range(piece.ndim)]
    rising = (torch.arange(length, dtype=torch.float32, device=piece.device) / length).view(shape)
    falling = (torch.arange(length, 0, -1, dtype=torch.float32, device=piece.device) / length).view(shape)
    old = (before.narrow(dim, before.shape[dim] - length, length) * falling).to(piece.dtype)
    new = piece.narrow(dim, 0, length)
    new.copy_(old + (new * rising).to(piece.dtype))
