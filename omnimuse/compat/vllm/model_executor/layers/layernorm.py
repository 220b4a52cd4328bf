"""`vllm.model_executor.layers.layernorm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32; with a `residual`, of their sum, which is returned, too."""

    def __init__(
        self, hidden_size: int, eps: float = 1e-6, *, has_weight: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype)) if has_weight else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """[..., hidden_size] -> the same shape."""
        if residual is not None:
            x = x + residual
        exact = x.float()
        normed = (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)
        if self.weight is not None:
            normed = normed * self.weight
        return normed if residual is None else (normed, x)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
