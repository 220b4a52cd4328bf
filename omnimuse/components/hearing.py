"""Parts of towers that listen: layers that see windows of a sound, and the places of its frames.

Letters: S tokens, D width, N heads, H head dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOWEST = 10_000.0


def places_of(count: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines that tell a place within a chunk, [count, D]."""
    half = width // 2
    speeds = torch.exp(-math.log(SLOWEST) / (half - 1) * torch.arange(half, device=device).float())
    angles = torch.arange(count, device=device)[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class HearingLayer(nn.Module):
    """Attention within windows, then an MLP, each on the normed hidden states and added to them."""

    def __init__(self, width: int, heads: int, hidden: int, *, key_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=key_bias)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor, window: int) -> Tensor:
        normed = self.self_attn_layer_norm(hidden)
        parts = (proj(normed).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        windows = zip(*(part.transpose(0, 1).split(window, dim=1) for part in parts), strict=True)  # [N, S, H] each
        seen = torch.cat([F.scaled_dot_product_attention(q[None], k[None], v[None])[0] for q, k, v in windows], dim=1)
        hidden = hidden + self.out_proj(seen.transpose(0, 1).flatten(1))
        return hidden + self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))
