"""Norms with weights. Models build them; the arithmetic, including where it rounds, is diffusers' own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467).

    The mean square is taken in float32 and the quotient is rounded to the weight's dtype before it is
    multiplied, as in `diffusers.models.normalization.RMSNorm`.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.float().pow(2).mean(-1, keepdim=True)  # [..., 1]
        x = x * torch.rsqrt(mean_square + self.eps)  # float32, also for half-precision x
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype)
        return x * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"
