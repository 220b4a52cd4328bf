"""Kernels of other packages, imported only where they are chosen: FlashAttention 2 and 3, SageAttention, xFormers.

None is a dependency. A package that is missing is refused when the engine starts, with what to install; so is a
device, number format or width of heads that it does not take, and one that fails when it is tried: each is built for
some GPUs, and only itself knows for which. Bound by `attention/selection.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from omnimuse.attention.backends.rows import no_mask
from omnimuse.attention.backends.varlen import laid_end_to_end, too_old
from omnimuse.attention.layout import Layout

Load = Callable[[str], Any]


@dataclass(frozen=True)
class Package:
    """Where the kernels are, how people get them, and which heads they take: 8, 16 ... `widest` numbers."""

    module: str
    install: str
    widest: int = 256
    oldest: tuple[int, int] | None = None
    """The first version whose results can be trusted."""

    def obstacle(self, device: torch.device, dtype: torch.dtype, head_dim: int, load: Load) -> str | None:
        """Why the package cannot compute this, or None. What no installation changes comes first."""
        if device.type != "cuda":
            return f"{self.module} runs on CUDA, not on {device}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"{self.module} computes in float16 and bfloat16, not in {dtype}"
        if head_dim > self.widest or head_dim % 8:
            return f"{self.module} takes heads of 8, 16 ... {self.widest} numbers, not of {head_dim}"
        try:
            load(self.module)
        except ImportError as error:
            return f"{self.module} cannot be imported ({error}); {self.install}"
        return self.too_early() or too_old(device)

    def too_early(self) -> str | None:
        """Why the version that is installed is not used, or None."""
        try:
            found = version(self.module)
        except PackageNotFoundError:
            return None
        numbers = tuple(map(int, re.findall(r"\d+", found)[:2]))
        if self.oldest is None or numbers >= self.oldest:
            return None
        return f"{self.module} {found} gives weight to keys that are not there; {self.install}"


class Installed(ABC):
    """Kernels of a package that is imported when a site is bound. They take no masks and do not tell weights."""

    name = ""
    weighs = False

    def __init__(self, package: Package, load: Load = import_module) -> None:
        self.package = package
        self.load = load

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return self.package.obstacle(device, dtype, head_dim, self.load) or self.tried(device, dtype, head_dim)

    def why_no_mask(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return f"{self.package.module} is called without one"

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor: ...

    def tried(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """What the library says where a small call of either kind fails there, or None."""
        few = torch.zeros(1, 8, 1, head_dim, device=device, dtype=dtype)
        try:
            self(few, few, few)
            self.packed(few, few, few, Layout((3, 5)), Layout((6, 2)))
        except (ImportError, AttributeError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            return f"{self.package.module} fails when it is tried: {shorten(str(error), 600)}"
        return None

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
        _, keys, *rest = laid_end_to_end(q, k, v, layout, kv_layout)
        rows = torch.cat([self._around_zero(row) for row in keys.split(kv_layout.lengths)])
        return attend(q.flatten(0, 1), rows, *rest, smooth_k=False).view(q.shape)

    @staticmethod
    def _around_zero(row: Tensor) -> Tensor:
        """A key alone would be nothing but zeros, of which the library makes no scale."""
        return row - row.mean(0, keepdim=True) if len(row) > 1 else row


class XFormers(Installed):
    """xFormers' memory-efficient attention; rows of different lengths as the blocks of a mask."""

    name = "xformers"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        no_mask(self.name, mask)
        return self.load(self.package.module).memory_efficient_attention(q, k, v)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        ops = self.load(self.package.module)
        lengths = list(layout.lengths), list(kv_layout.lengths)
        blocks = layout.kept(  # made by an upload, and elsewhere where no device is named
            (self.name, kv_layout.lengths, q.device),
            lambda: ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(*lengths, device=q.device),
        )
        query, key, value = (x.flatten(0, 1)[None] for x in (q, k, v))  # [1, T, N, H], also of rows that are stacked
        return ops.memory_efficient_attention(query, key, value, attn_bias=blocks).view(q.shape)


FLASH_2 = Package("flash_attn", '`pip install "omnimuse[flash]"`, or choose sdpa_flash, which is in torch')
FLASH_3 = Package("flash_attn_interface", "build it from the folder hopper/ of FlashAttention, or choose 'sdpa_cudnn'")
SAGE = Package(
    "sageattention",
    "build 2.2 or newer from its repository (package indexes have older ones), or choose sdpa",
    widest=128,
    oldest=(2, 2),
)
XFORMERS = Package("xformers.ops", '`pip install "omnimuse[xformers]"`, or choose sdpa_efficient, which is in torch')


def _outcome(found: Any) -> Tensor:
    """Some versions give the outcome alone, others with what its keys weigh."""
    return found[0] if isinstance(found, tuple) else found
