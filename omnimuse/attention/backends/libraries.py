"""Kernels of other packages, imported only where they are chosen: FlashAttention 2 and 3, SageAttention, xFormers.

None is a dependency. A package that is missing is refused when the engine starts, with what to install; so is a
device, number format or width of heads that it does not take. Bound by `attention/selection.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from omnimuse.attention.backends.rows import no_mask
from omnimuse.attention.backends.varlen import laid_end_to_end, too_old
from omnimuse.attention.layout import Layout

Load = Callable[[str], Any]


@dataclass(frozen=True)
class Package:
    """Where the kernels are, how people get them, and which heads they take."""

    module: str
    install: str
    widths: tuple[int, ...] = ()
    """Widths of heads; empty: every multiple of 8 up to 256."""

    def obstacle(self, device: torch.device, dtype: torch.dtype, head_dim: int, load: Load) -> str | None:
        """Why the package cannot compute this, or None."""
        try:
            load(self.module)
        except ImportError as error:
            return f"{self.module} cannot be imported ({error}); {self.install}"
        if device.type != "cuda":
            return f"{self.module} runs on CUDA, not on {device}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"{self.module} computes in float16 and bfloat16, not in {dtype}"
        fits = head_dim in self.widths if self.widths else head_dim <= 256 and head_dim % 8 == 0
        if not fits:
            widths = ", ".join(map(str, self.widths)) or "8, 16 ... 256"
            return f"{self.module} takes heads of {widths} numbers, not of {head_dim}"
        return too_old(device)


class Installed:
    """Kernels of a package that is imported when a site is bound. They take no masks and do not tell weights."""

    name = ""
    weighs = False

    def __init__(self, package: Package, load: Load = import_module) -> None:
        self.package = package
        self.load = load

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return self.package.obstacle(device, dtype, head_dim, self.load)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{self.name} does not tell what keys weigh")


class FlashAttention(Installed):
    """FlashAttention: version 2 is `flash_attn`, version 3 (Hopper) `flash_attn_interface`; both by the same names."""

    def __init__(self, name: str, package: Package, load: Load = import_module) -> None:
        super().__init__(package, load)
        self.name = name

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        no_mask(self.name, mask)
        return _outcome(self.load(self.package.module).flash_attn_func(q, k, v))

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        attend = self.load(self.package.module).flash_attn_varlen_func
        return _outcome(attend(*laid_end_to_end(q, k, v, layout, kv_layout))).view(q.shape)


class SageAttention(Installed):
    """SageAttention: products of queries and keys in int8, so results are near, not equal."""

    name = "sage"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        no_mask(self.name, mask)
        return self.load(self.package.module).sageattn(q, k, v, tensor_layout="NHD")

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        attend = self.load(self.package.module).sageattn_varlen
        return attend(*laid_end_to_end(q, k, v, layout, kv_layout)).view(q.shape)


class XFormers(Installed):
    """xFormers' memory-efficient attention; rows of different lengths as the blocks of a mask."""

    name = "xformers"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        no_mask(self.name, mask)
        return self.load(self.package.module).memory_efficient_attention(q, k, v)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        ops = self.load(self.package.module)
        blocks = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(layout.lengths), list(kv_layout.lengths))
        return ops.memory_efficient_attention(q, k, v, attn_bias=blocks)


FLASH_2 = Package("flash_attn", '`pip install "omnimuse[flash]"`, or choose sdpa_flash, which is in torch')
FLASH_3 = Package("flash_attn_interface", "build it from the folder hopper/ of FlashAttention, or choose 'sdpa_cudnn'")
SAGE = Package("sageattention", '`pip install "omnimuse[sage]"`, or choose sdpa', widths=(64, 96, 128))
XFORMERS = Package("xformers.ops", '`pip install "omnimuse[xformers]"`, or choose sdpa_efficient, which is in torch')


def _outcome(found: Any) -> Tensor:
    """Some versions give the outcome alone, others with what its keys weigh."""
    return found[0] if isinstance(found, tuple) else found
