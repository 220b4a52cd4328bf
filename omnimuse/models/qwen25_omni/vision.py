"""The eyes of Qwen2.5-Omni: in most blocks a patch sees those of its window, in some those of the same moment.

The arithmetic, and the names of the weights, are those of transformers' `Qwen2_5OmniVisionEncoder`.

Letters: t h w moments, rows and columns of patches; m x m of which make a piece; D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.seeing import Grid, Groups, PatchConfig, PatchTower, TurningBlock
from omnimuse.layers.norm import RMSNorm

EPS = 1e-6


@dataclass(frozen=True)
class VisionConfig(PatchConfig):
    """The facts of this one."""

    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    patch_size: int = 14
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)


class Vision(PatchTower):
    """A tower of this kind."""

    facts = VisionConfig
    fixed: ClassVar = {"hidden_act": ("silu",)}

    def __init__(self, config: VisionConfig) -> None:
        width, heads = config.hidden_size, config.num_heads
        blocks = [TurningBlock(width, heads, (_norm(width), _norm(width)), Gated(config)) for _ in range(config.depth)]
        super().__init__(config, blocks, _norm(width), bias=False)

    def groups(self, grid: Grid, device: torch.device) -> Sequence[Groups]:
        """Patches of the same window, and patches of the same moment."""
        c, merge = self.config, self.config.spatial_merge_size
        assert isinstance(c, VisionConfig)
        side = c.window_size // merge // c.patch_size
        times, down, across = (
            torch.arange(length, device=device) for length in (grid[0], grid[1] // merge, grid[2] // merge)
        )
        rows, columns = (-(-len(each) // side) for each in (down, across))
        window = (times[:, None, None] * rows + down[:, None] // side) * columns + across // side  # [t, h / m, w / m]
        moment = times[:, None, None].expand_as(window)
        windows, moments = (Groups.of(each.flatten(), merge) for each in (window, moment))
        return [moments if number in c.fullatt_block_indexes else windows for number in range(c.depth)]


def _norm(width: int) -> RMSNorm:
    return RMSNorm(width, EPS)


class Gated(nn.Module):
    """A gated MLP with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
