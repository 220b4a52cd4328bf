"""How a network is told what time it is. Models build these; the numbers are those of diffusers' embeddings.

Letters: B batch, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(t: Tensor, dim: int, max_period: float = 10_000.0, scale: float = 1.0) -> Tensor:
    """Cosines, then sines, of t at dim/2 geometric frequencies: [B] -> [B, dim] in float32, dim even.

    Angles are multiplied by `scale` at last, as diffusers does, which t itself may have too few bits for.
    """
    steps = torch.arange(dim // 2, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(max_period) * steps / (dim // 2))  # [dim/2], from 1 down to almost 1 / max_period
    angles = t.float()[:, None] * frequencies  # [B, dim/2]
    angles = angles if scale == 1.0 else angles * scale
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def waves(places: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines, then cosines, of places or times at dim/2 frequencies, of which the last is 1 / `max_period`: [S] ->
    [S, dim] in float32.
    """
    half = dim // 2
    speeds = torch.exp(-math.log(max_period) / (half - 1) * torch.arange(half, device=places.device).float())
    angles = places[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimestepEmbedding(nn.Module):
    """Sinusoid, linear, SiLU, linear: [B] -> [B, out] in the dtype of the weights."""

    def __init__(self, out: int, hidden: int, frequencies: int = 256, *, scale: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.scale = scale
        self.linear_1 = nn.Linear(frequencies, hidden, bias)
        self.activation = nn.SiLU()
        self.linear_2 = nn.Linear(hidden, out, bias)

    def forward(self, t: Tensor) -> Tensor:
        waves = sinusoid(t, self.frequencies, scale=self.scale).to(self.linear_1.weight.dtype)
        return self.linear_2(self.activation(self.linear_1(waves)))


class TimestepVectors(nn.Module):
    """Times [B] -> `count` vectors for each, [B, count * D], by which blocks scale, shift and gate."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, times: Tensor) -> Tensor:
        return self.linear(self.activation(self.embedder(times)))
