"""Parts of towers that look at pictures and videos, patch by patch: a block in which each sees all others, by what
patches turn that come piece by piece, and how a piece becomes one.

Letters: t h w moments, rows and columns of patches; S patches, m x m of which make a piece, P pieces, D width, N heads,
H head dim, E width of what is made of a piece.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]
"""Moments, rows and columns of patches."""
THETA = 10_000.0


class SeeingBlock(nn.Module):
    """Attention, then an MLP, each on the normed hidden states [S, D] and added to them."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        eps: float,
        *,
        bias: bool = True,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate), nn.Linear(hidden, width))

    def forward(self, hidden: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1))  # [S, 3, N, H]
        seen = F.scaled_dot_product_attention(*qkv.permute(1, 2, 0, 3)[:, None])[0]  # [N, S, H]
        hidden = hidden + self.proj(seen.transpose(0, 1).flatten(1))
        return hidden + self.mlp(self.norm2(hidden))


class Merger(nn.Module):
    """The patches of a piece, `width` wide together, become one: [S, D] -> [P, E]. They are normed before that or,
    `late`, as a whole.
    """

    def __init__(self, norm: nn.Module, width: int, out: int, *, late: bool = False) -> None:
        super().__init__()
        self.late, self.width = late, width
        self.ln_q = norm
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, hidden: Tensor) -> Tensor:
        pieces = self.ln_q(hidden.view(-1, self.width)) if self.late else self.ln_q(hidden).view(-1, self.width)
        return self.mlp(pieces)


def patch_turns(grid: Grid, merge: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which patches turn heads `dim` wide, by row and then by column: [S, 1, H / 2]
    each.
    """
    quarter = dim // 4
    speeds = 1.0 / THETA ** (torch.arange(quarter, device=device).float() / quarter)
    down, across = (torch.outer(torch.arange(length, device=device).float(), speeds) for length in grid[1:])
    shape = (grid[1], grid[2], quarter)
    angles = torch.cat([down[:, None].expand(shape), across[None].expand(shape)], dim=-1)
    angles = by_piece(angles.expand(grid[0], *angles.shape), merge)[:, None]
    return angles.cos(), angles.sin()


def by_piece(x: Tensor, merge: int) -> Tensor:
    """[t, h, w, *] -> [S, *], the `merge` x `merge` patches of a piece one after the other."""
    moments, rows, columns, last = x.shape
    pieces = x.reshape(moments, rows // merge, merge, columns // merge, merge, last).permute(0, 1, 3, 2, 4, 5)
    return pieces.reshape(-1, last)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [S, N, H], each pair (x[i], x[i + H / 2]) turned by its angle, in float32."""
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
