"""The eyes of Qwen2.5-Omni: patches of a picture or a video become what stands for them among the thinker's tokens.

The arithmetic, and the names of the weights, are those of transformers' `Qwen2_5OmniVisionEncoder`. Pictures are looked
at one by one; in most blocks a patch sees those of its window, in some those of the same moment.

Letters: t h w moments, rows and columns of patches; S patches, m x m of which make a piece, P pieces, G groups that see
each other, L patches of the largest, D width, N heads, H head dim, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.seeing import Grid, Merger, patch_turns, turned
from omnimuse.components.sights import Seen
from omnimuse.layers.norm import RMSNorm
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen25_omni.facts import IGNORED, THINKER

WHERE = f"config.json, {THINKER}, vision_config"
EPS = 1e-6


@dataclass(frozen=True)
class VisionConfig:
    """The facts in that part of config.json; defaults are those of the published code."""

    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)


@dataclass(frozen=True)
class Groups:
    """Which patches see each other: their places, int64 [G, L], and which of these are some, bool [G, L]."""

    places: Tensor
    there: Tensor

    @staticmethod
    def of(groups: Tensor, merge: int) -> Groups:
        """From the group of each piece, int64 [P], of `merge` x `merge` patches."""
        order, sizes = groups.argsort(stable=True), groups.bincount()
        places = order.new_zeros(len(sizes), int(sizes.max()))
        there = torch.arange(places.shape[1], device=groups.device) < sizes[:, None]
        places[there] = order
        patches = places[..., None] * merge**2 + torch.arange(merge**2, device=groups.device)
        return Groups(patches.flatten(1), there.repeat_interleave(merge**2, dim=1))


class Vision(nn.Module):
    """Patches [S, numbers of a patch], piece by piece, and their grid -> what is `Seen`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config, c = config, config
        kernel = (c.temporal_patch_size, c.patch_size, c.patch_size)
        self.patch_embed = nn.Conv3d(c.in_channels, c.hidden_size, kernel, kernel, bias=False)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.depth))
        self.merger = Merger(RMSNorm(c.hidden_size, EPS), c.hidden_size * c.spatial_merge_size**2, c.out_hidden_size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Vision:
        """The tower that the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        given = known_of(part(part(config, THINKER), "vision_config"), VisionConfig, ("hidden_act",))
        return cls(read_facts(VisionConfig, given, WHERE, {"hidden_act": ("silu",)}, IGNORED))

    def forward(self, patches: Tensor, grid: Grid) -> Seen:
        weight, c = self.patch_embed.weight, self.config
        hidden = self.patch_embed(patches.to(weight.dtype).view(-1, *weight.shape[1:])).flatten(1)  # [S, D]
        turns = patch_turns(grid, c.spatial_merge_size, c.hidden_size // c.num_heads, hidden.device)
        windows, moments = self._groups(grid, hidden.device)
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, turns, moments if number in c.fullatt_block_indexes else windows)
        shown = self.merger(hidden)
        return Seen(shown, shown.new_zeros(0, *shown.shape))

    def _groups(self, grid: Grid, device: torch.device) -> tuple[Groups, Groups]:
        """Patches of the same window, and patches of the same moment."""
        merge = self.config.spatial_merge_size
        side = self.config.window_size // merge // self.config.patch_size
        times, down, across = (
            torch.arange(length, device=device) for length in (grid[0], grid[1] // merge, grid[2] // merge)
        )
        rows, columns = (-(-len(each) // side) for each in (down, across))
        window = (times[:, None, None] * rows + down[:, None] // side) * columns + across // side  # [t, h / m, w / m]
        moment = times[:, None, None].expand_as(window)
        return Groups.of(window.flatten(), merge), Groups.of(moment.flatten(), merge)


class VisionBlock(nn.Module):
    """Attention within groups, then a gated MLP, each on the normed hidden states and added to them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_heads
        self.norm1, self.norm2 = RMSNorm(width, EPS), RMSNorm(width, EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, inner), nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(1)  # [S, N, H] each
        parts = (turned(q, *turns), turned(k, *turns), v)
        q, k, v = (x[groups.places].transpose(1, 2) for x in parts)  # [G, N, L, H]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=groups.there[:, None, None]).transpose(1, 2)
        seen = torch.empty_like(hidden).index_copy_(0, groups.places[groups.there], seen.flatten(2)[groups.there])
        hidden = hidden + self.proj(seen)
        normed = self.norm2(hidden)
        return hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))
