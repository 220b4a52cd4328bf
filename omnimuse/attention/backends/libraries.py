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
    """Where the kernels are, how people get them, and the widest heads that they take."""

    module: str
    install: str
    widest: int = 256
    since: str = ""
    """A name that versions have which compute right."""
    older: str = ""
    """What others do."""

    def obstacle(self, device: torch.device, dtype: torch.dtype, head_dim: int, load: Load) -> str | None:
        """Why the package cannot compute this, or None."""
        try:
            module = load(self.module)
        except ImportError as error:
            return f"{self.module} cannot be imported ({error}); {self.install}"
        if self.since and not hasattr(module, self.since):
            return f"this version of {self.module} {self.older}; {self.install}"
        if device.type != "cuda":
            return f"{self.module} runs on CUDA, not on {device}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"{self.module} computes in float16 and bfloat16, not in {dtype}"
        if head_dim > self.widest or head_dim % 8:
            return f"{self.module} takes heads of 8, 16 ... {self.widest} numbers, not of {head_dim}"
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
    """SageAttention: products of queries and keys in int8, so results are near, not equal.

    Keys have their mean taken out first, which no query notices. Of rows laid end to end the library takes that of all
    of them; here each row has its own taken out, so that none depends on its company.
    """

    name = "sage"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        no_mask(self.name, mask)
        return self.load(self.package.module).sageattn(q, k, v, tensor_layout="NHD")

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        attend = self.load(self.package.module).sageattn_varlen
        rows = torch.cat([row - row.mean(1, keepdim=True) for row in k.split(kv_layout.lengths, dim=1)], dim=1)
        return attend(*laid_end_to_end(q, rows, v, layout, kv_layout), smooth_k=False).view(q.shape)


class XFormers(Installed):
    """xFormers' memory-efficient attention; rows of different lengths as the blocks of a mask."""

    name = "xformers"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        no_mask(self.name, mask)
        return self.load(self.package.module).memory_efficient_attention(q, k, v)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        ops = self.load(self.package.module)
        made = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens
        lengths, device = (list(layout.lengths), list(kv_layout.lengths)), q.device  # where it lies must be said
        blocks = layout.kept((self.name, kv_layout.lengths, device), lambda: made(*lengths, device=device))
        return ops.memory_efficient_attention(q, k, v, attn_bias=blocks)


FLASH_2 = Package("flash_attn", '`pip install "omnimuse[flash]"`, or choose sdpa_flash, which is in torch')
FLASH_3 = Package("flash_attn_interface", "build it from the folder hopper/ of FlashAttention, or choose 'sdpa_cudnn'")
SAGE = Package(
    "sageattention",
    "build version 2 from its repository, or choose sdpa",
    widest=128,
    since="sageattn_qk_int8_pv_fp16_triton",
    older="counts keys that are not there, where their number is no multiple of 64, and computes something else",
)
XFORMERS = Package("xformers.ops", '`pip install "omnimuse[xformers]"`, or choose sdpa_efficient, which is in torch')


def _outcome(found: Any) -> Tensor:
    """Some versions give the outcome alone, others with what its keys weigh."""
    return found[0] if isinstance(found, tuple) else found
