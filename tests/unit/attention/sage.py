"""What `test_real.py` runs by itself: kernels of SageAttention in Triton's interpreter, through our backend."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from omnimuse.attention.backends.libraries import SAGE, SageAttention
from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layout import Layout

BOUND = 0.015
"""How far numbers of 8 bits are off."""


def given(rows: int, tokens: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values [rows, tokens, 3, width]; keys that are not around zero."""
    draw = torch.Generator().manual_seed(width)
    q, k, v = (torch.randn(rows, tokens, 3, width, generator=draw) for _ in range(3))
    return [each.to(dtype) for each in (q, k + 3 * torch.randn(width, generator=draw), v)]


def far(found: Tensor, expected: Tensor) -> float:
    """The distance, as a part of the size."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def main() -> None:
    """Exits with an error where something is wrong; assertions are off here."""
    sys.modules["sageattention._fused"] = ModuleType("_fused")  # its kernels for GPUs alone
    core: Any = import_module("sageattention.core")
    core.get_cuda_arch_versions = lambda: {None: "sm86"}  # for which it has kernels in Triton
    torch.cuda.set_device = lambda device: None
    backend, layout, keys = SageAttention(SAGE), Layout((30, 100)), Layout((77, 53))
    for width in (8, 40, 64, 96, 128):
        q, k, v = given(2, 70, width, torch.float16)
        kept, found = k.clone(), backend(q, k, v)
        check(width, far(found, Sdpa()(q, k, v)) < BOUND and torch.equal(k, kept))
        q, k, v = given(1, 130, width, torch.float16)
        found = backend.packed(q, k, v, layout, keys)
        for mine, theirs in zip(layout.slices(), keys.slices(), strict=True):
            row = q[:, mine], k[:, theirs], v[:, theirs]
            alone = backend.packed(*row, Layout((row[0].shape[1],)), Layout((row[1].shape[1],)))
            check(width, far(found[:, mine], Sdpa()(*row)) < BOUND and torch.equal(found[:, mine], alone))


def check(width: int, right: bool) -> None:
    if not right:
        sys.exit(f"heads of {width} numbers attend wrongly")


if __name__ == "__main__":
    main()
