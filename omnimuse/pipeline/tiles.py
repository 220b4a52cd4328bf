"""Decoding in tiles: a picture is decoded in squares that overlap and are blended, so that memory is that of one.

The squares, and the arithmetic where they meet, are those of diffusers' `AutoencoderKL` with `enable_tiling`. Decoded
they may be by several ranks (`parallel/tiles.py`): how is what `run` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]
"""Latents [1, C, h, w] -> pixels [1, 3, H, W]."""

Run = Callable[[Decode, Sequence[Tensor]], list[Tensor]]
"""How several squares are decoded; in order."""

OVERLAP = 0.25
"""The part of a tile that the next one has, too."""


def in_turn(decode: Decode, tiles: Sequence[Tensor]) -> list[Tensor]:
    """One after the other."""
    return [decode(tile) for tile in tiles]


@dataclass(frozen=True)
class Tiling:
    """Tiles of `cells` latent cells a side, which are `pixels` pixels; a smaller picture is decoded as a whole."""

    cells: int
    pixels: int
    run: Run = in_turn

    def decode(self, decode: Decode, latents: Tensor) -> Tensor:
        """Latents [1, C, h, w] -> pixels [1, 3, H, W], by tiles where a side is longer than one."""
        height, width = latents.shape[-2:]
        if max(height, width) <= self.cells:
            return decode(latents)
        step = int(self.cells * (1 - OVERLAP))
        tops, lefts = range(0, height, step), range(0, width, step)
        squares = [latents[..., top : top + self.cells, left : left + self.cells] for top in tops for left in lefts]
        decoded = self.run(decode, squares)
        blended = int(self.pixels * OVERLAP)
        rows: list[list[Tensor]] = []
        for number in range(len(tops)):
            rows.append(decoded[number * len(lefts) : (number + 1) * len(lefts)])
            for place in range(len(lefts)):
                tile = rows[-1][place]
                if number:
                    tile = _blended(rows[-2][place], tile, blended, dim=-2)
                if place:
                    tile = _blended(rows[-1][place - 1], tile, blended, dim=-1)
                rows[-1][place] = tile
        kept = self.pixels - blended
        return torch.cat([torch.cat([tile[..., :kept, :kept] for tile in row], dim=-1) for row in rows], dim=-2)


def _blended(before: Tensor, tile: Tensor, extent: int, dim: int) -> Tensor:
    """`tile`, whose first pixels along `dim` go over from the last ones of the tile `before` it."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if not extent:
        return tile
    share = torch.arange(extent, dtype=torch.float64, device=tile.device) / extent
    share = share.view(-1, 1) if dim == -2 else share
    end, begin = before.narrow(dim, before.shape[dim] - extent, extent), tile.narrow(dim, 0, extent)
    mixed = (end.float() * (1 - share).float() + begin.float() * share.float()).to(tile.dtype)
    return torch.cat([mixed, tile.narrow(dim, extent, tile.shape[dim] - extent)], dim=dim)
