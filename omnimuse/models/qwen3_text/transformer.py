"""The Qwen3 language model (arXiv 2505.09388) as a decoder: what it has read, its memory keeps.

The arithmetic is that of transformers' `Qwen3ForCausalLM`. Rows are laid end to end for every layer but attention, in
which each row sees its own memory; so rows that read a prompt and rows that go on from one token share a forward.

Letters: R rows, S tokens of a row, T of all rows, D width, N heads, H head dim, L layers, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.ar.kv import KV, Decoder, Reading
from omnimuse.attention.layout import Layout
from omnimuse.components.qwen3 import Qwen3Config, Qwen3Heads
from omnimuse.core.plans import Cut
from omnimuse.layers.mlp import GatedMLP
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.stack import Block, BlockStack, Memory

WHERE = "config.json"
FEWEST = 256
"""Positions whose rotations are made at first."""


@dataclass(frozen=True)
class Conditions:
    """What every layer receives beside the hidden states: rotations, packed like these, and the rows' memories.

    A row that reads several tokens after others has a mask; one token, or the first ones, need none.
    """

    layout: Layout
    cos: Tensor  # [1, T, 1, H/2] or [R, S, 1, H/2], of the angle by which a position turns
    sin: Tensor
    rows: tuple[Reading, ...]
    masks: tuple[Tensor | None, ...]  # [S, start + S], True where a token sees another

    @property
    def dense(self) -> bool:
        return False

    def select(self, rows: Sequence[int]) -> Conditions:
        return Conditions(
            self.layout.select(rows),
            self.layout.take(self.cos, rows),
            self.layout.take(self.sin, rows),
            tuple(self.rows[row] for row in rows),
            tuple(self.masks[row] for row in rows),
        )

    def cut(self, part: Cut) -> Conditions | None:
        return None  # what a row remembers lies in one place


class Qwen3Decoder(Decoder):
    """Tokens and what came before them -> logits of the next one."""

    def __init__(self, config: Qwen3Config, tied: bool) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = BlockStack(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tied:
            self.head.weight = self.embed_tokens.weight
        self._turns: Tensor | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Qwen3Decoder:
        return cls(Qwen3Config.from_dict(config, WHERE), bool(config.get("tie_word_embeddings", False)))

    def stacks(self) -> dict[str, BlockStack]:
        return {"layers": self.layers}

    def memory(self, room: int, device: torch.device) -> KV:
        c = self.config
        shape = (c.num_hidden_layers, 2, c.num_key_value_heads, room, c.head_dim)
        return KV(torch.empty(shape, dtype=self.norm.weight.dtype, device=device))

    def forward(self, rows: Sequence[Reading], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        layout = Layout(tuple(len(row.ids) for row in rows))
        hidden = self.embed_tokens(layout.pack([row.ids for row in rows]))  # [1, T, D] or [R, S, D]
        hidden = self.layers(hidden, self._conditions(rows, layout, hidden.dtype), memories)
        last = torch.stack([row[-1] for row in layout.unpack(hidden)])  # [R, D]
        return list(self.head(self.norm(last)).unbind())

    def _conditions(self, rows: Sequence[Reading], layout: Layout, dtype: torch.dtype) -> Conditions:
        ends = [row.start + len(row.ids) for row in rows]
        turns = self._turned(max(ends), rows[0].ids.device, dtype)
        cos, sin = (layout.pack([part[row.start : end] for row, end in zip(rows, ends, strict=True)]) for part in turns)
        return Conditions(layout, cos, sin, tuple(rows), tuple(map(_mask, rows)))

    def _turned(self, tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The cosines and sines of at least the first `tokens` positions, [2, S, 1, H/2]: made once, not every step."""
        known = self._turns
        if known is None or known.shape[1] < tokens or known.device != device or known.dtype != dtype:
            positions = torch.arange(max(FEWEST, 2 * tokens), device=device)[:, None]
            table = rotary_table(positions, (self.config.head_dim,), self.config.rope_theta).to(dtype)
            known = self._turns = torch.stack([table[:, :1, :, 0], table[:, 1:, :, 1]])
        return known


def _mask(row: Reading) -> Tensor | None:
    if row.start == 0 or len(row.ids) == 1:
        return None
    places = torch.arange(row.start + len(row.ids), device=row.ids.device)
    return places[None, :] <= places[row.start :, None]


class DecoderLayer(Block[Conditions]):
    """Attention, then the gated MLP, each on the normed hidden states and added to them."""

    mixes_tokens = True

    def __init__(self, config: Qwen3Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = RememberingAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cond)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class RememberingAttention(Qwen3Heads):
    """Causal attention to what the memory of a row has, and to the tokens that are read now, which it then has, too."""

    def __init__(self, config: Qwen3Config, layer: int) -> None:
        super().__init__(config)
        self.layer = layer

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        parts = (cond.layout.unpack(part) for part in self.split(x, cond.cos, cond.sin))
        seen = [
            self._attend(row, q, k, v, mask) for row, q, k, v, mask in zip(cond.rows, *parts, cond.masks, strict=True)
        ]
        return self.o_proj(cond.layout.pack(seen))

    def _attend(self, row: Reading, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries, keys and values [S, *, H] of one row -> what it sees, [S, D]."""
        end = row.start + len(q)
        remembered = row.kv.data[self.layer]  # [2, N / sharing, room, H]
        remembered[0, :, row.start : end] = k.transpose(0, 1)
        remembered[1, :, row.start : end] = v.transpose(0, 1)
        keys, values = remembered[:, None, :, :end]  # [1, N / sharing, end, H]
        seen = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],  # [1, N, S, H]
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and len(q) > 1,
            enable_gqa=self.sharing > 1,
        )
        return seen[0].transpose(0, 1).flatten(1)
