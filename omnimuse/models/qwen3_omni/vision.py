"""The eyes of Qwen3-Omni: patches of a picture, or of a video, become what stands for them among the thinker's tokens.

The arithmetic, and the names of the weights, are those of transformers' `Qwen3OmniMoeVisionEncoder`. Pictures are
looked at one by one; the patches of a video see those of the same moment.

Letters: t h w moments, rows and columns of patches; S patches, m x m of which make a piece, P pieces, D width, N heads,
H head dim, E width of the thinker, L layers that tell more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.seeing import Grid, Merger, by_piece, patch_turns, turned
from omnimuse.components.sights import Seen
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen3_omni.facts import IGNORED, THINKER

WHERE = f"config.json, {THINKER}, vision_config"
EPS = 1e-6


@dataclass(frozen=True)
class VisionConfig:
    """The facts in that part of config.json; defaults are those of the published code."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)

    @property
    def side(self) -> int:
        """Places a side that have a learned position."""
        return int(self.num_position_embeddings**0.5)


class Vision(nn.Module):
    """Patches [S, numbers of a patch], piece by piece, and their grid -> what is `Seen`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config, c = config, config
        kernel = (c.temporal_patch_size, c.patch_size, c.patch_size)
        self.patch_embed = nn.Conv3d(c.in_channels, c.hidden_size, kernel, kernel)
        self.pos_embed = nn.Embedding(c.num_position_embeddings, c.hidden_size)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.depth))
        piece, out = c.hidden_size * c.spatial_merge_size**2, c.out_hidden_size
        self.merger = Merger(nn.LayerNorm(c.hidden_size, EPS), piece, out)
        self.merger_list = nn.ModuleList(
            Merger(nn.LayerNorm(piece, EPS), piece, out, late=True) for _ in c.deepstack_visual_indexes
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Vision:
        """The tower that the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        given = known_of(part(part(config, THINKER), "vision_config"), VisionConfig, ("hidden_act",))
        found = read_facts(VisionConfig, given, WHERE, {"hidden_act": ("gelu_pytorch_tanh",)}, IGNORED)
        if list(found.deepstack_visual_indexes) != sorted(set(found.deepstack_visual_indexes)):
            raise ModelError(f"{WHERE}: deepstack_visual_indexes={found.deepstack_visual_indexes} are not in order")
        return cls(found)

    def forward(self, patches: Tensor, grid: Grid) -> Seen:
        weight, c = self.patch_embed.weight, self.config
        hidden = self.patch_embed(patches.to(weight.dtype).view(-1, *weight.shape[1:])).flatten(1)  # [S, D]
        hidden = hidden + self._positions(grid)
        turns = patch_turns(grid, c.spatial_merge_size, c.hidden_size // c.num_heads, hidden.device)
        deep = list[Tensor]()
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, turns, grid[0])
            if number in c.deepstack_visual_indexes:
                deep.append(self.merger_list[len(deep)](hidden))
        shown = self.merger(hidden)
        return Seen(shown, torch.stack(deep) if deep else shown.new_zeros(0, *shown.shape))

    def _positions(self, grid: Grid) -> Tensor:
        """The learned positions, stretched over rows and columns, the same at every moment: [S, D]."""
        side, weight = self.config.side, self.pos_embed.weight
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


class VisionBlock(nn.Module):
    """Attention, then an MLP, each on the normed hidden states and added to them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor], moments: int) -> Tensor:
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(1)  # [S, N, H] each
        parts = (turned(q, *turns), turned(k, *turns), v)
        q, k, v = (x.unflatten(0, (moments, -1)).transpose(1, 2) for x in parts)  # [t, N, S / t, H]
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1)
        hidden = hidden + self.proj(seen)
        return hidden + self.fc2(F.gelu(self.fc1(self.norm2(hidden)), approximate="tanh"))
