"""The block of towers that look at a picture, patch by patch, each of which sees all others.

Letters: S patches, D width, N heads, H head dim.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


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
