"""Packed rows of different lengths in one call, by torch's own kernel for them; everything else by `sdpa`.

Without it, rows that share a forward attend one after the other. Bound by `attention/selection.py` where it is named,
which is told here where the kernel is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layout import Layout

ARGUMENTS = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
"""The kernel's first ones, which are given by their places; a torch that has others is refused."""
WIDEST = 256
OLDEST = (8, 0)


class Varlen:
    """`torch.nn.attention.varlen.varlen_attn` for packed rows. `load` imports a module."""

    name = "varlen"
    weighs = True

    def __init__(self, load: Callable[[str], Any] = import_module) -> None:
        self.load = load
        self.dense = Sdpa()

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if device.type != "cuda":
            return f"torch's kernel for packed rows runs on CUDA, not on {device}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"torch's kernel for packed rows computes in float16 and bfloat16, not in {dtype}"
        if head_dim > WIDEST or head_dim % 8:
            return f"torch's kernel for packed rows takes heads of 8, 16 ... {WIDEST} numbers, not of {head_dim}"
        return self.missing() or too_old(device)

    def missing(self) -> str | None:
        """Why this torch has no such kernel, or None."""
        try:
            kernel = self.load("torch.nn.attention.varlen").varlen_attn
        except (ImportError, AttributeError):
            return f"torch {torch.__version__} has no kernel for packed rows; it came with torch 2.10"
        found = tuple(inspect.signature(kernel).parameters)[: len(ARGUMENTS)]
        return (
            None if found == ARGUMENTS else f"torch {torch.__version__} has a kernel for packed rows that takes {found}"
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.dense(q, k, v, mask)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        attend = self.load("torch.nn.attention.varlen").varlen_attn
        return attend(*laid_end_to_end(q, k, v, layout, kv_layout)).view(q.shape)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.dense.weigh(q, k, v)


def laid_end_to_end(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]:
    """What kernels for packed rows take: q, k, v [T, N, H], twice where rows begin and end, and the longest of each."""
    query, key, value = (x.flatten(0, 1) for x in (q, k, v))
    longest = max(layout.lengths), max(kv_layout.lengths)
    return query, key, value, layout.ends(q.device), kv_layout.ends(q.device), *longest


def too_old(device: torch.device) -> str | None:
    """Why kernels of this kind do not run on this GPU, or None."""
    if torch.cuda.get_device_capability(device) >= OLDEST:
        return None
    return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST[0]}.{OLDEST[1]}"
