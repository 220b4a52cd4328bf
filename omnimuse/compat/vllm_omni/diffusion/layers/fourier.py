"""`vllm_omni.diffusion.layers.fourier`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name


class GaussianFourierProjection(nn.Module):
    """[..., in_features] -> [B, 2 embedding_size]: cosines, then sines, of 2 pi times what the weights make of it."""

    def __init__(self, *, in_features: int, embedding_size: int, scale: float = 1.0, trainable: bool = True) -> None:
        super().__init__()
        self.in_features, self.embedding_size = in_features, embedding_size
        self.weight = nn.Parameter(torch.randn(embedding_size, in_features) * scale, requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x.reshape(-1, self.in_features) @ self.weight.T
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
