"""Decoding in tiles: a picture is decoded in squares that overlap and are blended, so that memory is that of one.
Videos have tiles of their own (`video.py`), which are blended alike.

The squares, and the arithmetic where they meet, are those of diffusers with `enable_tiling`. Decoded they may be by
several ranks (`parallel/tiles.py`): how is what `run` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
        return self.pixels, int(self.cells * (1 - self.overlap)) * (self.pixels // self.cells)

    @property
    def smaller(self) -> Tiling | None:
        """Tiles of half the side; None where these are as small as they get."""
        half = self.cells // 2
        pixels = half * (self.pixels // self.cells)
        return replace(self, cells=half, pixels=pixels, own=True) if pixels >= LEAST_TILE else None

    def decode(self, decode: Decode, latents: Tensor) -> Tensor:
        """Latents [1, C, h, w] -> pixels [1, 3, H, W], by tiles where a side is longer than one."""
        height, width = latents.shape[-2:]
        if max(height, width) <= self.cells:
            return decode(latents)
        step = int(self.cells * (1 - self.overlap))
        tops, lefts = range(0, height, step), range(0, width, step)
        squares = [latents[..., top : top + self.cells, left : left + self.cells] for top in tops for left in lefts]
        scale = self.pixels // self.cells
        shapes = [(1, 3, square.shape[-2] * scale, square.shape[-1] * scale) for square in squares]
        decoded = self.run(decode, squares, shapes)
        blended = int(self.pixels * self.overlap)
        rows: list[list[Tensor]] = []
        for number in range(len(tops)):
            rows.append(decoded[number * len(lefts) : (number + 1) * len(lefts)])
            for place in range(len(lefts)):
                if number:
                    blend(rows[-2][place], rows[-1][place], blended, dim=2)
                if place:
                    blend(rows[-1][place - 1], rows[-1][place], blended, dim=3)
        kept = self.pixels - blended
        return torch.cat([torch.cat([tile[..., :kept, :kept] for tile in row], dim=-1) for row in rows], dim=-2)


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
