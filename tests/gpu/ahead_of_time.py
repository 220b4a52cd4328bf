"""Compiles every fused kernel for GPUs that need not be here, and prints what reads memory in it.

Run as a program: Triton is told of a driver of ours, which it keeps as long as the process lives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget

from omnimuse.layers import fused
from omnimuse.layers.kernels import HeadNorm

HEADS, HEAD_DIM = 24, 128  # FLUX.1's


class Absent:
    """A driver of one GPU with nothing behind it."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class Compiled:
    """Stands where a kernel stands, and compiles it instead of running it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def compile_only(*args: Any, **options: Any) -> None:
            made = self.kernel.warmup(*args, grid=grid, **options)
            wide = sum("ld.global.v4.b32" in line for line in made.asm["ptx"].splitlines())
            print(self.kernel.__name__, len(made.asm["cubin"]), wide)

        return compile_only


def main(capability: int) -> None:
    triton.runtime.driver.set_active(Absent(capability))
    kernels = fused.Fused(Compiled)
    half, width = torch.bfloat16, HEADS * HEAD_DIM
    x, weight = torch.zeros(2, 64, width, dtype=half), torch.zeros(width, dtype=half)
    scale, shift, gate = torch.zeros(2, 1, 3 * width, dtype=half).chunk(3, dim=-1)
    kernels.modulated_norm(x, 1e-6, scale, shift)
    kernels.rms_norm(x, weight, 1e-6, None)
    kernels.rms_norm(x, weight, 1e-6, scale)
    kernels.add_rms_norm(x, gate, x, weight, 1e-6)
    kernels.add(x, gate, x)
    kernels.gated(x, x)
    kernels.beside(x, x, nn.GELU("tanh"))
    qk = torch.zeros(2, 64, 3, HEADS, HEAD_DIM, dtype=half)[:, :, :2]
    rope, factor = torch.zeros(2, 64, 2, HEAD_DIM // 2, 2), torch.zeros(2 * HEAD_DIM, dtype=half)
    kernels.turn(qk, rope)
    kernels.norm_and_turn(qk, HeadNorm(factor, 1e-6, rounds_once=True), rope)
    kernels.norm_and_turn(qk, HeadNorm(factor, 1e-6, rounds_once=False), None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
