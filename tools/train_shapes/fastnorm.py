"""A fast CPU GroupNorm (+ SiLU) for VAE training; other devices and data types keep torch's own.

``groupnorm.c`` is built with ``cc`` on first use, next to the run's checkpoints.  ``fuse_norms`` swaps the
norms of a diffusers VAE for these: same parameters, same state dict, same numbers up to bf16 rounding.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FLAGS = ("-Ofast", "-march=native", "-mprefer-vector-width=512", "-shared", "-fPIC")


def build(folder: Path) -> ctypes.CDLL:
    """The compiled library, built in ``folder`` if it is not there.  Raises CalledProcessError without cc."""
    target = folder / "groupnorm.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source, fresh = Path(__file__).with_name("groupnorm.c"), folder / f"groupnorm.{os.getpid()}.so"
        subprocess.run(["cc", *_FLAGS, str(source), "-o", str(fresh), "-lmvec", "-lm"], check=True)
        fresh.replace(target)
    return ctypes.CDLL(str(target))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: FusedNorm) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        y = torch.empty_like(x)
        mean, rstd = x.new_empty(2, n, norm.num_groups, dtype=torch.float32)
        sizes = (n, h * w, c, norm.num_groups, ctypes.c_float(norm.eps), int(norm.silu))
        norm.library.forward(_at(x), _at(weight), _at(bias), _at(y), _at(mean), _at(rstd), *sizes)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        n, c, h, w = x.shape
        dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx, dw, db = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        scratch = torch.empty(h * w * c)
        dims = (ctypes.c_int * 5)(n, h * w, c, ctx.norm.num_groups, int(ctx.norm.silu))
        tensors = (dy, x, weight, bias, mean, rstd, dx, dw, db, scratch)
        ctx.norm.library.backward(*(_at(t) for t in tensors), dims)
        return dx, dw, db, None


class FusedNorm(nn.GroupNorm):
    """GroupNorm, then SiLU when ``silu``.  x: [n, c, h, w] channels-last bf16 takes the fast path."""

    def __init__(self, norm: nn.GroupNorm, library: ctypes.CDLL, silu: bool) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.library, self.silu = library, silu

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return _Fused.apply(x, self.weight, self.bias, self)
        y = super().forward(x)
        return F.silu(y) if self.silu else y


def fuse_norms(module: nn.Module, library: ctypes.CDLL) -> None:
    """Swaps, in place, every norm that is followed by an activation (resnets, last norms) for a fused one."""
    for child in module.modules():
        for norm, activation in (
            ("norm1", "nonlinearity"),
            ("norm2", "nonlinearity"),
            ("conv_norm_out", "conv_act"),
        ):
            if hasattr(child, norm):
                setattr(child, norm, FusedNorm(getattr(child, norm), library, silu=True))
                setattr(child, activation, nn.Identity())
