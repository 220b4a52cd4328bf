"""Ranks that share work, as code of the contract talks to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.parallel.collectives import gathered, summed
from omnimuse.parallel.mesh import Axis


@dataclass(frozen=True)
class Group:
    """The ranks of one axis; this is number `rank_in_group` of `world_size`."""

    axis: Axis

    @property
    def world_size(self) -> int:
        """How many there are."""
        return self.axis.size

    @property
    def rank_in_group(self) -> int:
        """Which this is."""
        return self.axis.index

    def all_gather(self, x: Tensor, dim: int = 0, separate_tensors: bool = False) -> Tensor | list[Tensor]:
        """What every rank has, in order, joined along `dim` or one by one; of equal shapes."""
        parts = [part[0] for part in gathered(self.axis, x[None], [1] * self.axis.size)]
        return parts if separate_tensors else torch.cat(parts, dim)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of what every rank has."""
        return summed(self.axis, x)
