"""`vllm_omni.diffusion.layers.rope`: rotations of queries and keys by their place.

Letters: B batch, S tokens, N heads, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.compat.contract.names import no_name


class RotaryEmbedding(nn.Module):
    """Rotates [B, S, N, H] by `cos` and `sin`, [S, H / 2] or [B, S, H / 2]; of narrower ones the beginning of a head.

    Pairs lie side by side, or, in the manner of GPT-NeoX, half a head apart. Without `half_head_dim`, every number of
    `cos` and `sin` is there for both of a pair.
    """

    def __init__(self, is_neox_style: bool = False, half_head_dim: bool = True, *, dim: int | None = None) -> None:
        super().__init__()
        self.is_neox_style = is_neox_style
        self.half_head_dim = half_head_dim
        self.dim = dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The same shape."""
        if self.dim is not None and x.shape[-1] != self.dim:
            raise ValueError(f"heads of {x.shape[-1]} numbers came to a rotation made for {self.dim}")
        if not self.half_head_dim:
            once = slice(0, cos.shape[-1] // 2) if self.is_neox_style else slice(0, None, 2)
            cos, sin = cos[..., once], sin[..., once]
        if (turned := 2 * cos.shape[-1]) < x.shape[-1]:
            return torch.cat([self._turned(x[..., :turned], cos, sin), x[..., turned:]], dim=-1)
        return self._turned(x, cos, sin)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = (each.unsqueeze(-2).to(torch.float32) for each in (cos, sin))  # [..., S, 1, H / 2]
        exact = x.float()
        if self.is_neox_style:
            a, b = exact.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
        a, b = exact.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def apply_rope_to_qk(
    rope: RotaryEmbedding, query: Tensor, key: Tensor, image_rotary_emb: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Queries and keys, rotated alike by (cos, sin); as they are without."""
    if image_rotary_emb is None:
        return query, key
    cos, sin = image_rotary_emb
    return rope(query, cos, sin), rope(key, cos, sin)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
