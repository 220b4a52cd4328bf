"""PyTorch's own fused attention: the default, on every device. Bound by `attention/selection.py`.

It picks flash, memory-efficient or plain kernels by itself; on a CPU its flash kernel needs no extra package.
`SdpaKernel` is the same with the kernel that somebody chose.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnimuse.attention.backends.rows import row_by_row
from omnimuse.attention.layout import Layout

KERNELS: Mapping[str, SDPBackend] = MappingProxyType(
    {
        "sdpa_flash": SDPBackend.FLASH_ATTENTION,
        "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
        "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
        "sdpa_math": SDPBackend.MATH,
    }
)
NAMES: Mapping[int, str] = MappingProxyType(
    {kernel.value: name.removeprefix("sdpa_") for name, kernel in KERNELS.items()}
)


class Sdpa:
    """`torch.nn.functional.scaled_dot_product_attention`."""

    name = "sdpa"
    weighs = True

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return None if dtype.is_floating_point else f"it computes in floating point, not in {dtype}"

    def kernel(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        """Which of its kernels torch takes of rows without a mask, and with one if that is another; "" where it does
        not tell. Torch is asked, of a few tokens.
        """
        if device.type not in ("cpu", "cuda"):
            return ""
        few = torch.zeros(1, 1, 8, head_dim, device=device, dtype=dtype)
        masks = None, torch.ones(1, 1, 8, 8, device=device, dtype=torch.bool)
        bare, masked = (NAMES.get(torch._fused_sdp_choice(few, few, few, mask), "") for mask in masks)
        return bare if bare == masked else f"{bare}, {masked} with a mask"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, S, H]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)  # [B, S, N, H]

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        return row_by_row(self, q, k, v, layout, kv_layout)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """By the same fused kernels, which know their weights; the public function does not hand these out."""
        query, key, value = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, S, H]
        if q.device.type == "cpu":
            out, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        else:
            out, weight, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
        weight = weight[..., : q.shape[1]]  # some kernels pad it
        return out.transpose(1, 2).float(), weight.transpose(1, 2).float()


class SdpaKernel:
    """The same function with one kernel, `name` of `KERNELS`, and no other."""

    weighs = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.kernel = KERNELS[name]
        self.any = Sdpa()

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Tried: torch alone knows what each of its kernels takes on which device."""
        return self.any.why_not(device, dtype, head_dim) or self._tried(device, dtype, head_dim)

    def why_no_mask(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return self._tried(device, dtype, head_dim, torch.ones(8, 8, device=device, dtype=torch.bool).tril())

    def _tried(self, device: torch.device, dtype: torch.dtype, head_dim: int, mask: Tensor | None = None) -> str | None:
        trial = torch.zeros(1, 8, 1, head_dim, device=device, dtype=dtype)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                self(trial, trial, trial, mask)
            except RuntimeError as error:
                return "; ".join(dict.fromkeys(_first(str(each.message)) for each in said)) or _first(str(error))
        return None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(self.kernel):
            return self.any(q, k, v, mask)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        return row_by_row(self, q, k, v, layout, kv_layout)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self.name} does not tell what keys weigh")


def _first(message: str) -> str:
    """The first sentence of what torch says, without where in its sources it was said."""
    return message.split(" (Triggered internally")[0].split(". ")[0].strip().rstrip(".")
