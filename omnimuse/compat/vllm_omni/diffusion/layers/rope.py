"""`vllm_omni.diffusion.layers.rope`: rotations of queries and keys by their place.

Letters: B batch, S tokens, N heads, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name


class RotaryEmbedding(nn.Module):
    """Rotates [B, S, N, H] by `cos` and `sin`, [S, H / 2] or [B, S, H / 2].

    Pairs lie side by side, or, in the manner of GPT-NeoX, half a head apart.
    """

    def __init__(self, is_neox_style: bool = False, *, dim: int | None = None) -> None:
        super().__init__()
        self.is_neox_style = is_neox_style
        self.dim = dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The same shape."""
        if self.dim is not None and x.shape[-1] != self.dim:
            raise ValueError(f"heads of {x.shape[-1]} numbers came to a rotation made for {self.dim}")
        cos, sin = (each.unsqueeze(-2).to(torch.float32) for each in (cos, sin))  # [..., S, 1, H / 2]
        exact = x.float()
        if self.is_neox_style:
            a, b = exact.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
        a, b = exact.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def apply_rope_to_qk(
    rope: RotaryEmbedding, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Queries and keys, rotated alike by (cos, sin)."""
    cos, sin = rotary
    return rope(query, cos, sin), rope(key, cos, sin)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
