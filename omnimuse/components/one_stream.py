"""Blocks of transformers whose image and caption form one sequence, with norms before and after every part.

They came with Lumina (arXiv 2406.18583, section 2); the time scales what enters a part and gates what leaves it. A
family's network says how its tokens, times and positions are made.

Letters: R rows, B batch, S tokens, D width, N heads, H head dim, M width of the time's vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Columns, Cut, Cutting, Rows
from omnimuse.layers.mlp import GatedMLP
from omnimuse.layers.norm import QueryKeyNorm, RMSNorm
from omnimuse.layers.stack import Block, BlockStack
from omnimuse.loader.rules import Fuse, Rename, joined

QK_NORM_EPS = 1e-5  # fixed in the references, whatever the other norms have


@dataclass(frozen=True)
class Blocks:
    """What a network's blocks are: their width, how many heads queries have and how many keys, the widths within the
    MLPs and of the time's vector, and the norms' epsilon.
    """

    dim: int
    heads: int
    kv_heads: int
    hidden: int
    modulation: int
    eps: float


@dataclass(frozen=True)
class OneStreamCond:
    """What every block receives beside the hidden states. `time` is None for the caption, which knows no step."""

    layout: Layout
    rope: Tensor  # packed, [R, S, 2, H/2, 2] or [1, T, 2, H/2, 2]
    time: Tensor | None = None  # [R, M]

    @property
    def dense(self) -> bool:
        """Whether the rows are equally long."""
        return self.layout.dense

    def select(self, rows: Sequence[int]) -> OneStreamCond:
        time = None if self.time is None else torch.stack([self.time[row] for row in rows])
        return OneStreamCond(self.layout.select(rows), self.layout.take(self.rope, rows), time)

    def cut(self, part: Cut) -> OneStreamCond:
        return OneStreamCond(self.layout.cut(part), self.layout.share(self.rope, part), self.time)


class OneStreamBlock(Block[OneStreamCond]):
    """Attention and a gated MLP, each between two norms; scaled and gated by the time, if it is `timed`."""

    def __init__(self, blocks: Blocks, role: str, *, timed: bool = True) -> None:
        super().__init__()
        dim = blocks.dim
        self.attention_norm1 = RMSNorm(dim, blocks.eps)
        self.attention = SelfAttention(blocks, role)
        self.attention_norm2 = RMSNorm(dim, blocks.eps)
        self.ffn_norm1 = RMSNorm(dim, blocks.eps)
        self.mlp = GatedMLP(dim, blocks.hidden)
        self.ffn_norm2 = RMSNorm(dim, blocks.eps)
        self.modulation = nn.Linear(blocks.modulation, 4 * dim) if timed else None

    def forward(self, hidden: Tensor, cond: OneStreamCond) -> Tensor:
        if self.modulation is None:
            hidden = hidden + self.attention_norm2(self.attention(self.attention_norm1(hidden), cond))
            return hidden + self.ffn_norm2(self.mlp(self.ffn_norm1(hidden)))
        attention_scale, attention_gate, mlp_scale, mlp_gate = self._modulate(cond)
        x = self.attention(self.attention_norm1(hidden, attention_scale), cond)
        hidden = self.attention_norm2.add(hidden, attention_gate.tanh(), x)
        x = self.mlp(self.ffn_norm1(hidden, mlp_scale))
        return self.ffn_norm2.add(hidden, mlp_gate.tanh(), x)

    def probe(self, hidden: Tensor, cond: OneStreamCond) -> Tensor:
        if self.modulation is None:
            return self.attention_norm1(hidden)
        return self.attention_norm1(hidden, self._modulate(cond)[0])

    def _modulate(self, cond: OneStreamCond) -> tuple[Tensor, ...]:
        """Scale and gate of the attention, then of the MLP, each one vector per row made to broadcast."""
        assert self.modulation is not None
        return cond.layout.expand(self.modulation(cond.time)).chunk(4, dim=-1)


class SelfAttention(nn.Module):
    """Within each row, with normed and rotated queries and keys; several queries may share keys and values."""

    def __init__(self, blocks: Blocks, role: str) -> None:
        super().__init__()
        head_dim = blocks.dim // blocks.heads
        self.to_qkv = nn.Linear(blocks.dim, blocks.dim + 2 * blocks.kv_heads * head_dim, bias=False)
        self.norm_qk = QueryKeyNorm(head_dim, QK_NORM_EPS, rounds_once=False)
        self.core = Attention(blocks.heads, head_dim, role, category="self", key_heads=blocks.kv_heads)
        self.to_out = nn.Linear(blocks.dim, blocks.dim, bias=False)

    def forward(self, x: Tensor, cond: OneStreamCond) -> Tensor:
        qk, v = self._split(self.to_qkv(x))
        q, k = self.norm_qk(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        return self.to_out(self.core(q, k, v, cond.layout).flatten(-2))  # [B, S, D]

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, S, 2, N, H], and values [B, S, N, H]."""
        if self.core.shared == 1:
            qkv = qkv.unflatten(-1, (3, self.core.num_heads, -1))  # [B, S, 3, N, H]
            return qkv[:, :, :2], qkv[:, :, 2]
        heads = (self.core.num_heads, self.core.key_heads, self.core.key_heads)
        q, k, v = qkv.unflatten(-1, (sum(heads), self.core.head_dim)).split(heads, dim=2)
        k, v = (part.repeat_interleave(self.core.shared, dim=2) for part in (k, v))  # [B, S, N, H]
        return torch.stack([q, k], dim=2), v


def plan_of(stacks: Mapping[str, BlockStack]) -> dict[str, Cutting]:
    """How ranks share out the weights of stacks of such blocks, by the stacks' names in their network."""
    parts: dict[str, Cutting] = {
        "attention.to_qkv": Columns(queries=1, keys=2),
        "attention.to_out": Rows(queries=1),
        "mlp.gate": Columns(others=1),
        "mlp.up": Columns(others=1),
        "mlp.down": Rows(others=1),
    }
    plan = {f"{name}.*.{part}": cut for name, stack in stacks.items() if len(stack) for part, cut in parts.items()}
    timed = [name for name, stack in stacks.items() if any(block.modulation is not None for block in stack)]
    return plan | {f"{name}.*.modulation": Columns(others=1, gather=True) for name in timed}


class Head(nn.Module):
    """The last norm, scaled by the time, and the projection to pixels of a patch. `active`: the time comes as blocks
    take it, and they take it past its activation.
    """

    def __init__(self, blocks: Blocks, patch_dim: int, *, active: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(blocks.dim, eps=1e-6, elementwise_affine=False)
        self.activation = nn.Identity() if active else nn.SiLU()
        self.modulation = nn.Linear(blocks.modulation, blocks.dim)
        self.linear = nn.Linear(blocks.dim, patch_dim)

    def forward(self, hidden: Tensor, cond: OneStreamCond) -> Tensor:
        assert cond.time is not None
        scale = 1 + cond.layout.expand(self.modulation(self.activation(cond.time)))
        return self.linear(self.norm(hidden) * scale)


RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"\.attention\.to_out\.0\.", ".attention.to_out."),
    *joined("attention.to_*", "qkv", "attention.to_qkv", kinds=("weight",)),
    Fuse(parts=("attention.norm_q.weight", "attention.norm_k.weight"), into="attention.norm_qk.weight"),
)
"""How the names of a block's attention, as diffusers saves such networks, become ours."""
