"""Towers that look at pictures and videos, patch by patch, and their parts: a block in which each sees all others, one
in which it sees those of its group and turns by where it is, and how a piece becomes one.

Of the towers of omni models, the names of the weights are those that transformers has.

Letters: t h w moments, rows and columns of patches; S patches, m x m of which make a piece, P pieces, G groups that see
each other, L patches of the largest, D width, N heads, H head dim, E width of what is made of a piece.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.answering_facts import VISION
from omnimuse.components.sights import Seen
from omnimuse.layers.rotary import turn_halves
from omnimuse.loader.facts import facts_inside

Grid = tuple[int, int, int]
"""Moments, rows and columns of patches."""
THETA = 10_000.0


class SeeingBlock(nn.Module):
    """Attention, then an MLP, each on the normed hidden states [S, D] and added to them."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        eps: float,
        *,
        bias: bool = True,
        approximate: Literal["none", "tanh"] = "none",
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate), nn.Linear(hidden, width))

    def forward(self, hidden: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1))  # [S, 3, N, H]
        seen = F.scaled_dot_product_attention(*qkv.permute(1, 2, 0, 3)[:, None])[0]  # [N, S, H]
        hidden = hidden + self.proj(seen.transpose(0, 1).flatten(1))
        return hidden + self.mlp(self.norm2(hidden))


class Merger(nn.Module):
    """The patches of a piece, `width` wide together, become one: [S, D] -> [P, E]. They are normed before that or,
    `late`, as a whole.
    """

    def __init__(self, norm: nn.Module, width: int, out: int, *, late: bool = False) -> None:
        super().__init__()
        self.late, self.width = late, width
        self.ln_q = norm
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, hidden: Tensor) -> Tensor:
        pieces = self.ln_q(hidden.view(-1, self.width)) if self.late else self.ln_q(hidden).view(-1, self.width)
        return self.mlp(pieces)


@dataclass(frozen=True)
class Groups:
    """Which patches see each other: their places, int64 [G, L], and which of these are some, bool [G, L]; None: all, in
    order.
    """

    places: Tensor
    there: Tensor | None = None

    @staticmethod
    def of(groups: Tensor, merge: int) -> Groups:
        """From the group of each piece, int64 [P], of `merge` x `merge` patches."""
        order, sizes = groups.argsort(stable=True), groups.bincount()
        places = order.new_zeros(len(sizes), int(sizes.max()))
        there = torch.arange(places.shape[1], device=groups.device) < sizes[:, None]
        places[there] = order
        patches = places[..., None] * merge**2 + torch.arange(merge**2, device=groups.device)
        return Groups(patches.flatten(1), there.repeat_interleave(merge**2, dim=1))

    @staticmethod
    def moments(grid: Grid, device: torch.device) -> Groups:
        """Patches of the same moment."""
        moments, rows, columns = grid
        return Groups(torch.arange(moments * rows * columns, device=device).view(moments, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What patches see of their groups, of heads [S, N, H] each: [S, N * H]."""
        there, shape = self.there, self.places.shape
        q, k, v = (x.unflatten(0, shape) if there is None else x[self.places] for x in (q, k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [G, N, L, H]
        mask = None if there is None else there[:, None, None]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        if there is None:
            return seen.flatten(0, 1)
        found = seen[there]
        return torch.empty_like(found).index_copy_(0, self.places[there], found)


class TurningBlock(nn.Module):
    """Attention within groups, of heads that turn, then an MLP, each on hidden states [S, D] that a norm of its own has
    normed, and added to them.
    """

    def __init__(self, width: int, heads: int, norms: tuple[nn.Module, nn.Module], mlp: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = norms
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = mlp

    def forward(self, hidden: Tensor, turns: tuple[Tensor, Tensor], groups: Groups) -> Tensor:
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(1)  # [S, N, H] each
        hidden = hidden + self.proj(groups.attend(turned(q, *turns), turned(k, *turns), v))
        return hidden + self.mlp(self.norm2(hidden))


@dataclass(frozen=True)
class PatchConfig:
    """The facts of a tower in that part of config.json; defaults are those of the published code."""

    depth: int
    hidden_size: int
    intermediate_size: int
    patch_size: int
    num_heads: int = 16
    in_channels: int = 3
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584

    @property
    def piece(self) -> int:
        """The width of all patches of a piece."""
        return self.hidden_size * self.spatial_merge_size**2


class PatchTower(nn.Module):
    """Patches [S, numbers of a patch], piece by piece, and their grid -> what is `Seen`."""

    facts: ClassVar[type[PatchConfig]]
    fixed: ClassVar[Mapping[str, tuple[object, ...]]]

    def __init__(self, config: PatchConfig, blocks: Sequence[TurningBlock], norm: nn.Module, *, bias: bool) -> None:
        super().__init__()
        self.config, c = config, config
        kernel = (c.temporal_patch_size, c.patch_size, c.patch_size)
        self.patch_embed = nn.Conv3d(c.in_channels, c.hidden_size, kernel, kernel, bias=bias)
        self.blocks = nn.ModuleList(blocks)
        self.merger = Merger(norm, c.piece, c.out_hidden_size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The tower that the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        return cls(facts_inside(cls.facts, config, VISION, cls.fixed))  # type: ignore[call-arg]

    @abstractmethod
    def groups(self, grid: Grid, device: torch.device) -> Sequence[Groups]:
        """Which patches see each other in every block."""

    def placed(self, hidden: Tensor, grid: Grid) -> Tensor:
        """What enters the blocks of embedded patches [S, D]: these, unless a tower has learnt places."""
        return hidden

    def deeper(self, number: int, hidden: Tensor) -> Tensor | None:
        """What is told besides of hidden states behind a block, [P, E]: usually nothing."""
        return None

    def forward(self, patches: Tensor, grid: Grid) -> Seen:
        weight, c = self.patch_embed.weight, self.config
        hidden = self.patch_embed(patches.to(weight.dtype).view(-1, *weight.shape[1:])).flatten(1)  # [S, D]
        hidden = self.placed(hidden, grid)
        turns = patch_turns(grid, c.spatial_merge_size, c.hidden_size // c.num_heads, hidden.device)
        deep = list[Tensor]()
        for number, (block, groups) in enumerate(zip(self.blocks, self.groups(grid, hidden.device), strict=True)):
            hidden = block(hidden, turns, groups)
            if (told := self.deeper(number, hidden)) is not None:
                deep.append(told)
        shown = self.merger(hidden)
        return Seen(shown, torch.stack(deep) if deep else shown.new_zeros(0, *shown.shape))


def patch_turns(grid: Grid, merge: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which patches turn heads `dim` wide, by row and then by column: [S, 1, H / 2]
    each.
    """
    quarter = dim // 4
    speeds = 1.0 / THETA ** (torch.arange(quarter, device=device).float() / quarter)
    down, across = (torch.outer(torch.arange(length, device=device).float(), speeds) for length in grid[1:])
    shape = (grid[1], grid[2], quarter)
    angles = torch.cat([down[:, None].expand(shape), across[None].expand(shape)], dim=-1)
    angles = by_piece(angles.expand(grid[0], *angles.shape), merge)[:, None]
    return angles.cos(), angles.sin()


def by_piece(x: Tensor, merge: int) -> Tensor:
    """[t, h, w, *] -> [S, *], the `merge` x `merge` patches of a piece one after the other."""
    moments, rows, columns, last = x.shape
    pieces = x.reshape(moments, rows // merge, merge, columns // merge, merge, last).permute(0, 1, 3, 2, 4, 5)
    return pieces.reshape(-1, last)


def here(table: Tensor, rows: int, columns: int) -> Tensor:
    """What a square table of places, [side * side, D], has for those of a picture of so many patches, [S, D]."""
    side = round(len(table) ** 0.5)
    return table.view(side, side, -1)[:rows, :columns].flatten(0, 1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [S, N, H], each pair (x[i], x[i + H / 2]) turned by its angle, in float32."""
    return turn_halves(x.float(), cos, sin).to(x.dtype)
