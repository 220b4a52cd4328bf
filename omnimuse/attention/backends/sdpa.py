"""PyTorch's own fused attention: the default, on every device. Bound by `attention/selection.py`.

It picks flash, memory-efficient or plain kernels by itself; on a CPU its flash kernel needs no extra package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Sdpa:
    """`torch.nn.functional.scaled_dot_product_attention`."""

    name = "sdpa"

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return None if dtype.is_floating_point else f"it computes in floating point, not in {dtype}"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, S, H]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)  # [B, S, N, H]

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """By the same fused kernels, which know their weights; the public function does not hand these out."""
        query, key, value = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, S, H]
        if q.device.type == "cpu":
            out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        else:
            out, weight, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
        weight = weight[..., : q.shape[1]]  # some kernels pad it
        return out.transpose(1, 2).float(), weight.transpose(1, 2).float()
