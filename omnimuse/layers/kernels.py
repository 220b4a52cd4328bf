"""What blocks do to every token between products and attention: the parts for it, and by which kernels they compute.

A part has no kernel of its own: it asks its `kernels`, which a build pass chooses (`worker/kernels.py`). Plain ones, of
torch's operations, run everywhere; fused ones (`layers/fused.py`) read and write each number once.

Letters: B batch, S tokens, D width, N heads, H head dim, P spans of equally many tokens that follow one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.layers.rotary import rotate


@dataclass(frozen=True)
class HeadNorm:
    """A norm of queries and keys: see `QueryKeyNorm`. `weight` [2H]."""

    weight: Tensor
    eps: float
    rounds_once: bool


class Kernels(Protocol):
    """The arithmetic. `x` is [B, S, D]; `scale`, `shift` and `gate` are [P, 1, D] or [1, P, D], and hold for every
    token of their span; results are like `x`.
    """

    name: str

    def modulated_norm(self, x: Tensor, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
        """layer_norm(x) (1 + scale) + shift."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, scale: Tensor | None) -> Tensor:
        """x / rms(x) weight (1 + scale), or without the last factor."""
        ...

    def add_rms_norm(self, residual: Tensor, gate: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual + gate rms_norm(x)."""
        ...

    def add(self, residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        """residual + gate x."""
        ...

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) up, both [B, S, D]."""
        ...

    def beside(self, attended: Tensor, mlp: Tensor, activation: nn.Module) -> Tensor:
        """What came of attention [B, S, D] and `activation` of what an MLP began with, end to end."""
        ...

    def turn(self, qk: Tensor, rope: Tensor) -> Tensor:
        """`layers.rotary.rotate`."""
        ...

    def norm_and_turn(self, qk: Tensor, norm: HeadNorm, rope: Tensor | None) -> Tensor:
        """Queries and keys [B, S, 2, N, H], normed, and turned if there is a table."""
        ...


class Plain:
    """torch's own operations, one after the other. Where they round is where diffusers rounds."""

    name = "plain"

    def __init__(self) -> None:
        self._numbers: dict[float, Tensor] = {}  # on the CPU, of no dimensions: any device takes them

    def over_rms(self, x: Tensor, eps: float) -> Tensor:
        """1 / sqrt(mean(x^2) + eps) over the last dimension, float32: [..., 1]. Of few rows it takes the time of calls,
        and a call that is given a number that of making a tensor of it.
        """
        exact = x.float()
        if torch.compiler.is_compiling():
            return exact.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        if eps not in self._numbers:
            with torch.inference_mode(False):
                self._numbers[eps] = torch.tensor(eps, device="cpu", dtype=torch.float32)
        return torch.add(self._numbers[eps], (exact * exact).sum(-1, keepdim=True), alpha=1 / x.shape[-1]).rsqrt_()

    def modulated_norm(self, x: Tensor, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, scale: Tensor | None) -> Tensor:
        x = x * self.over_rms(x, eps)  # float32, also for half-precision x
        if weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(weight.dtype)
        return x * weight if scale is None else x * weight * (1 + scale)

    def add_rms_norm(self, residual: Tensor, gate: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return residual + gate * self.rms_norm(x, weight, eps, None)

    def add(self, residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        return residual + gate * x

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    def beside(self, attended: Tensor, mlp: Tensor, activation: nn.Module) -> Tensor:
        return torch.cat([attended, activation(mlp)], dim=-1)

    def turn(self, qk: Tensor, rope: Tensor) -> Tensor:
        return rotate(qk, rope)

    def norm_and_turn(self, qk: Tensor, norm: HeadNorm, rope: Tensor | None) -> Tensor:
        weight, shape = norm.weight.view(2, 1, -1), qk.shape[-1:]
        normed = (F.rms_norm(qk.float() if norm.rounds_once else qk, shape, eps=norm.eps) * weight).to(qk.dtype)
        return normed if rope is None else rotate(normed, rope)


class Part(nn.Module):
    """A part that computes by `kernels`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Kernels = Plain()


class Rotation(Part):
    """Queries and keys [B, S, 2, N, H], turned by a table as `rotate` has it, or as they are if there is none."""

    def forward(self, qk: Tensor, rope: Tensor | None) -> Tensor:
        return qk if rope is None else self.kernels.turn(qk, rope)


class GatedSum(Part):
    """residual + gate * x."""

    def forward(self, residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        return self.kernels.add(residual, gate, x)


class Gated(Part):
    """silu(gate) * up."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.kernels.gated(gate, up)


class Beside(Part):
    """What came of attention, and the activation of what an MLP began with, end to end."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, attended: Tensor, mlp: Tensor) -> Tensor:
        return self.kernels.beside(attended, mlp, self.activation)
