"""Norms with weights. Models build them; the arithmetic, including where it rounds, is diffusers' own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class QueryKeyNorm(nn.Module):
    """RMS norms of queries and keys, both in one pass: [B, S, 2, N, H] -> like it.

    The weight is that of the queries, then that of the keys. In half precision the quotient is rounded before it is
    multiplied by the weight, as in `RMSNorm`, or, with `rounds_once`, only after that, as in `nn.RMSNorm`.
    """

    def __init__(self, head_dim: int, eps: float, *, rounds_once: bool) -> None:
        super().__init__()
        self.eps = eps
        self.rounds_once = rounds_once
        self.weight = nn.Parameter(torch.ones(2 * head_dim))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float() if self.rounds_once else x
        return (F.rms_norm(exact, x.shape[-1:], eps=self.eps) * self.weight.view(2, 1, -1)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"2x{self.weight.numel() // 2}, eps={self.eps}"
