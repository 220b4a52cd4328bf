"""The eyes of Qwen3-Omni: patches of the same moment see each other, and behind some blocks more is told of them.

The arithmetic, and the names of the weights, are those of transformers' `Qwen3OmniMoeVisionEncoder`.

Letters: t h w moments, rows and columns of patches; S patches, D width, P pieces, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from omnimuse.components.seeing import Grid, Groups, Merger, PatchConfig, PatchTower, TurningBlock, by_piece
from omnimuse.core.errors import ModelError

EPS = 1e-6


@dataclass(frozen=True)
class VisionConfig(PatchConfig):
    """The facts of this one."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    patch_size: int = 16
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        if list(self.deepstack_visual_indexes) != sorted(set(self.deepstack_visual_indexes)):
            why = f"deepstack_visual_indexes={self.deepstack_visual_indexes} are not in order"
            raise ModelError(f"config.json, vision_config: {why}")


class Vision(PatchTower):
    """A tower of this kind."""

    facts = VisionConfig
    fixed: ClassVar = {"hidden_act": ("gelu_pytorch_tanh",)}

    def __init__(self, config: VisionConfig) -> None:
        width, piece, out = config.hidden_size, config.piece, config.out_hidden_size
        super().__init__(config, [_block(config) for _ in range(config.depth)], nn.LayerNorm(width, EPS), bias=True)
        self.deep = config.deepstack_visual_indexes
        self.pos_embed = nn.Embedding(config.num_position_embeddings, width)
        self.merger_list = nn.ModuleList(Merger(nn.LayerNorm(piece, EPS), piece, out, late=True) for _ in self.deep)

    def groups(self, grid: Grid, device: torch.device) -> Sequence[Groups]:
        return [Groups.moments(grid, device)] * len(self.blocks)

    def placed(self, hidden: Tensor, grid: Grid) -> Tensor:
        return hidden + self._positions(grid)

    def deeper(self, number: int, hidden: Tensor) -> Tensor | None:
        return self.merger_list[self.deep.index(number)](hidden) if number in self.deep else None

    def _positions(self, grid: Grid) -> Tensor:
        """The learned positions, stretched over rows and columns, the same at every moment: [S, D]."""
        weight = self.pos_embed.weight
        side = int(len(weight) ** 0.5)  # of the places that were learnt
        found: Tensor | None = None
        down, across = (
            torch.linspace(0, side - 1, length, dtype=torch.float32, device=weight.device) for length in grid[1:]
        )
        for high in (False, True):
            for wide in (False, True):
                (row, tall), (column, broad) = _near(down, side, high), _near(across, side, wide)
                share = (tall[:, None] * broad)[..., None]  # [h, w, 1]
                corner = weight[row[:, None] * side + column] * share.to(weight.dtype)
                found = corner if found is None else found + corner
        assert found is not None
        return by_piece(found.expand(grid[0], *found.shape), self.config.spatial_merge_size)


def _near(places: Tensor, side: int, high: bool) -> tuple[Tensor, Tensor]:
    """The next whole place below, or above, and how near it is."""
    below = places.floor().long()
    above = (below + 1).clamp(max=side - 1)
    share = places - below
    return (above, share) if high else (below, 1 - share)


def _block(config: VisionConfig) -> TurningBlock:
    width, inner = config.hidden_size, config.intermediate_size
    mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU("tanh"), nn.Linear(inner, width))
    return TurningBlock(width, config.num_heads, (nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)), mlp)
