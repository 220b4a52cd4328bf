"""The Muon update for weight matrices: momentum, made orthogonal by Newton-Schulz steps.

Keller Jordan et al. 2024, with the step size of Liu et al. 2025 ("Muon is scalable"), which makes the
update's root mean square that of AdamW.  Works in place on one flat tensor of matrices grouped by shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95
_RMS = 0.2


@dataclass(frozen=True)
class Group:
    """``count`` matrices of [rows, columns] that lie one behind the other from ``offset`` of the flat tensor."""

    offset: int
    count: int
    rows: int
    columns: int

    def of(self, flat: Tensor) -> Tensor:
        """A view [count, rows, columns]."""
        size = self.count * self.rows * self.columns
        return flat[self.offset : self.offset + size].view(self.count, self.rows, self.columns)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter of text encoder or transformer is a weight matrix between hidden channels."""
    inner = any(part in name for part in ("layers.", "refiner.", "blocks.", "block."))
    apart = any(part in name for part in ("adaLN", "relative_attention_bias"))
    return inner and parameter.dim() == 2 and not apart


def group_by_shape(matrices: list[nn.Parameter]) -> list[Group]:
    """Groups of ``matrices`` already sorted by shape, as they lie in the flat tensor."""
    groups: list[Group] = []
    offset = 0
    for matrix in matrices:
        rows, columns = matrix.shape
        last = groups[-1] if groups else None
        if last and (last.rows, last.columns) == (rows, columns):
            groups[-1] = Group(last.offset, last.count + 1, rows, columns)
        else:
            groups.append(Group(offset, 1, rows, columns))
        offset += rows * columns
    return groups


def orthogonal(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[k, rows, columns] with all singular values near 1, by Newton-Schulz steps in ``dtype``."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).contiguous()
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


def update(
    flat: Tensor, gradient: Tensor, momentum: Tensor, groups: list[Group], rate: float, dtype: torch.dtype
) -> None:
    """One step at learning rate ``rate`` on ``flat``, in place; ``momentum`` is the running mean gradient."""
    momentum.lerp_(gradient, 1 - _MOMENTUM)
    ahead = gradient.lerp(momentum, _MOMENTUM)
    for group in groups:
        size = _RMS * math.sqrt(max(group.rows, group.columns))
        group.of(flat).sub_(orthogonal(group.of(ahead), dtype=dtype), alpha=rate * size)
