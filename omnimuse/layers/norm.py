"""Norms of blocks. Models build them; the arithmetic, including where it rounds, is diffusers' own (`kernels.py`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnimuse.layers.kernels import HeadNorm, Part


class ModulatedNorm(Part):
    """Layer norm without weights over D, then scaled and shifted."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.kernels.modulated_norm(x, self.eps, scale, shift)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class RMSNorm(Part):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), perhaps scaled.

    The mean square is taken in float32 and the quotient is rounded to the weight's dtype before it is
    multiplied, as in `diffusers.models.normalization.RMSNorm`.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.kernels.rms_norm(x, self.weight, self.eps, scale)

    def add(self, residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        """residual + gate * norm(x), all [B, S, D] but the gate."""
        return self.kernels.add_rms_norm(residual, gate, x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class QueryKeyNorm(Part):
    """RMS norms of queries and keys, both in one pass: [B, S, 2, N, H] -> like it, and turned by `rope` if it is given.

    The weight is that of the queries, then that of the keys. In half precision the quotient is rounded before it is
    multiplied by the weight, as in `RMSNorm`, or, with `rounds_once`, only after that, as in `nn.RMSNorm`.
    """

    def __init__(self, head_dim: int, eps: float, *, rounds_once: bool) -> None:
        super().__init__()
        self.eps = eps
        self.rounds_once = rounds_once
        self.weight = nn.Parameter(torch.ones(2 * head_dim))

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        return self.kernels.norm_and_turn(x, HeadNorm(self.weight, self.eps, self.rounds_once), rope)

    def extra_repr(self) -> str:
        return f"2x{self.weight.numel() // 2}, eps={self.eps}"
