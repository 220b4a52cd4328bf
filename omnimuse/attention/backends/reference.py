"""Attention written out in float32: slow, obvious, and what the other kernels are compared with.

Bound by `attention/selection.py` when a configuration asks for it, or when nothing faster can run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omnimuse.attention.backends.rows import row_by_row
from omnimuse.attention.layout import Layout


class Reference:
    """softmax(q k^T / sqrt(H) + mask) v with every intermediate in float32."""

    name = "reference"
    weighs = True

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return None if dtype.is_floating_point else f"it computes in floating point, not in {dtype}"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = _scores(q, k)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        return (scores.softmax(-1) @ v.float().transpose(1, 2)).transpose(1, 2).to(q.dtype)  # [B, S, N, H]

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        return row_by_row(self, q, k, v, layout, kv_layout)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores = _scores(q, k)
        out = scores.softmax(-1) @ v.float().transpose(1, 2)  # [B, N, S, H]
        return out.transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """[B, N, S, K], float32."""
    query, key = (x.float().transpose(1, 2) for x in (q, k))  # [B, N, S, H]
    return query @ key.transpose(-1, -2) / math.sqrt(q.shape[-1])
