"""The Stable Audio transformer: latents of a waveform that read prompt and duration by cross attention (2407.14358).

The arithmetic is that of diffusers' `StableAudioDiTModel`. One token before the latents holds the duration and the
noise level. What does not depend on the step is computed once per request by `StableAudioTransformer.prepare`.

Letters: R rows, S tokens (1 + latents), L tokens of text and duration, D width, N heads, H head dim; c latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Columns, Cut, Cutting, Rows
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, BlockStack, Memory
from omnimuse.layers.steady import Product1d
from omnimuse.loader.facts import read_facts

ROPE_THETA = 10_000.0
EPS = 1e-5
MLP = 4
"""Hidden width of the MLP, times D."""


@dataclass(frozen=True)
class StableAudioConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published checkpoint."""

    sample_size: int = 1024
    in_channels: int = 64
    num_layers: int = 24
    attention_head_dim: int = 64
    num_attention_heads: int = 24
    num_key_value_attention_heads: int = 12
    out_channels: int = 64
    cross_attention_dim: int = 768
    time_proj_dim: int = 256
    global_states_input_dim: int = 1536
    cross_attention_input_dim: int = 768

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_attention_heads or self.attention_head_dim % 4:
            raise ModelError(
                f"transformer/config.json: num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_attention_heads={self.num_key_value_attention_heads}, or attention_head_dim="
                f"{self.attention_head_dim} none of 4"
            )

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class StableAudioStatic:
    """What stays the same over all steps of one branch: text and duration, the duration again, and the positions."""

    text: Tensor  # [L, cross_attention_dim]
    duration: Tensor  # [D]
    rope: Tensor  # [S, H/4, 2], float32


@dataclass(frozen=True)
class StableAudioInputs:
    """One row: scaled noisy latents [c, S - 1], the time [], and what `prepare` made."""

    latents: Tensor
    t: Tensor
    static: StableAudioStatic


@dataclass(frozen=True)
class StableAudioCond:
    """What every block receives beside the hidden states."""

    layout: Layout
    rope: Tensor  # packed, [R, S, H/4, 2] or [1, T, H/4, 2]
    text: Tensor  # packed by text_layout, [R, L, *] or [1, T', *]
    text_layout: Layout

    @property
    def dense(self) -> bool:
        """Whether the rows have equally many tokens, and of text, too."""
        return self.layout.dense and self.text_layout.dense

    def select(self, rows: Sequence[int]) -> StableAudioCond:
        return StableAudioCond(
            self.layout.select(rows),
            self.layout.take(self.rope, rows),
            self.text_layout.take(self.text, rows),
            self.text_layout.select(rows),
        )

    def cut(self, part: Cut) -> StableAudioCond:
        layout, rope = self.layout.cut(part), self.layout.share(self.rope, part)
        return StableAudioCond(layout, rope, self.text, self.text_layout)


class StableAudioTransformer(Network):
    """Predicts the velocity, one tensor [c, latents] per row."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: StableAudioConfig) -> None:
        super().__init__()
        self.config = config
        dim, cross = config.dim, config.cross_attention_dim
        self.time_proj = Frequencies(config.time_proj_dim // 2)
        self.timestep_proj = nn.Sequential(nn.Linear(config.time_proj_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.global_proj = _twice(config.global_states_input_dim, dim)
        self.cross_attention_proj = _twice(config.cross_attention_input_dim, cross)
        self.preprocess_conv = Product1d(config.in_channels, config.in_channels, 1, bias=False)
        self.proj_in = nn.Linear(config.in_channels, dim, bias=False)
        self.blocks = BlockStack(StableAudioBlock(config) for _ in range(config.num_layers))
        self.proj_out = nn.Linear(dim, config.out_channels, bias=False)
        self.postprocess_conv = Product1d(config.out_channels, config.out_channels, 1, bias=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StableAudioTransformer:
        return cls(read_facts(StableAudioConfig, config, "transformer/config.json", {}))

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.blocks}

    def plan(self) -> Mapping[str, Cutting]:
        attention, cross = "blocks.*.self_attention", "blocks.*.cross_attention"
        return {
            f"{attention}.to_qkv": Columns(queries=1, keys=2),
            f"{attention}.to_out": Rows(queries=1),
            f"{cross}.to_q": Columns(queries=1),
            f"{cross}.to_kv": Columns(keys=2),
            f"{cross}.to_out": Rows(queries=1),
            "blocks.*.mlp.linear_1": Columns(others=2),
            "blocks.*.mlp.linear_2": Rows(others=1),
        }

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states."""
        return self.proj_in.weight.dtype

    def prepare(self, text: Tensor, duration: Tensor) -> StableAudioStatic:
        """Text and duration [L, cross_attention_input_dim], duration alone [global_states_input_dim]."""
        rope = _rope(1 + self.config.sample_size, self.config.attention_head_dim // 2, text.device)
        return StableAudioStatic(self.cross_attention_proj(text), self.global_proj(duration), rope)

    def forward(self, rows: Sequence[StableAudioInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        layout = Layout(tuple(1 + row.latents.shape[1] for row in rows))
        text_layout = Layout(tuple(len(row.static.text) for row in rows))
        cond = StableAudioCond(
            layout=layout,
            rope=layout.pack([row.static.rope for row in rows]),
            text=text_layout.pack([row.static.text for row in rows]),
            text_layout=text_layout,
        )
        times = self.timestep_proj(self.time_proj(torch.stack([row.t for row in rows]).to(self.dtype)))  # [R, D]
        tokens = layout.pack([self._embed(row, time) for row, time in zip(rows, times, strict=True)])
        hidden = self.proj_out(self.blocks(tokens, cond, memories))
        return [_mixed(self.postprocess_conv, x[1:]).t() for x in layout.unpack(hidden)]

    def _embed(self, row: StableAudioInputs, time: Tensor) -> Tensor:
        """The tokens of a row, that of duration and time first: [S, D]."""
        latents = _mixed(self.preprocess_conv, row.latents.to(self.dtype).t())  # [S - 1, c]
        return torch.cat([(row.static.duration + time)[None], self.proj_in(latents)])


class Frequencies(nn.Module):
    """Cosines, then sines, of a time at learned frequencies: [R] -> [R, 2 count]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count))

    def forward(self, t: Tensor) -> Tensor:
        angles = 2 * pi * t[:, None] * self.weight
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class StableAudioBlock(Block[StableAudioCond]):
    """Self attention, cross attention to text and duration, MLP; each normed before it and added to what there was."""

    def __init__(self, config: StableAudioConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.self_attention = SelfAttention(config)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.cross_attention = CrossAttention(config)
        self.norm3 = nn.LayerNorm(dim, EPS)
        self.mlp = SwiGLU(dim, MLP * dim)

    def forward(self, hidden: Tensor, cond: StableAudioCond) -> Tensor:
        hidden = self.self_attention(self.norm1(hidden), cond) + hidden
        hidden = self.cross_attention(self.norm2(hidden), cond) + hidden
        return self.mlp(self.norm3(hidden)) + hidden

    def probe(self, hidden: Tensor, cond: StableAudioCond) -> Tensor:
        return self.norm1(hidden)


class SelfAttention(nn.Module):
    """Attention among the tokens of a row; the first half of every head is turned by its position."""

    def __init__(self, config: StableAudioConfig) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.core = Attention(config.num_attention_heads, config.attention_head_dim, "self")
        self.to_out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cond: StableAudioCond) -> Tensor:
        qkv = self.to_qkv(x).unflatten(-1, (3, self.core.num_heads, -1))  # [B, S, 3, N, H]
        q, k = _rotate(qkv[:, :, :2], cond.rope).unbind(2)  # [B, S, N, H] each
        return self.to_out(self.core(q, k, qkv[:, :, 2], cond.layout).flatten(-2))


class CrossAttention(nn.Module):
    """Attention of the tokens of a row to text and duration, pads included; several heads share keys and values."""

    def __init__(self, config: StableAudioConfig) -> None:
        super().__init__()
        width = config.num_key_value_attention_heads * config.attention_head_dim
        self.to_q = nn.Linear(config.dim, config.dim, bias=False)
        self.to_kv = nn.Linear(config.cross_attention_dim, 2 * width, bias=False)
        keys = config.num_key_value_attention_heads
        self.core = Attention(config.num_attention_heads, config.attention_head_dim, "cross", key_heads=keys)
        self.to_out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cond: StableAudioCond) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.core.num_heads, -1))  # [B, S, N, H]
        kv = self.to_kv(cond.text).unflatten(-1, (2, -1, 1, self.core.head_dim))  # [B, L, 2, N / shared, 1, H]
        k, v = kv.expand(-1, -1, -1, -1, self.core.shared, -1).flatten(3, 4).unbind(2)  # [B, L, N, H] each
        return self.to_out(self.core(q, k, v, cond.layout, kv_layout=cond.text_layout).flatten(-2))


class SwiGLU(nn.Module):
    """Linear, the first half times SiLU of the second (arXiv 2002.05202), linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, 2 * hidden)
        self.activation = nn.SiLU()
        self.linear_2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self._gated(self.linear_1(x)))

    def _gated(self, both: Tensor) -> Tensor:  # of its own: what it is given is gone before the last product
        value, gate = both.chunk(2, dim=-1)
        return self.activation(gate).mul_(value)


def _twice(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, dim, bias=False), nn.SiLU(), nn.Linear(dim, dim, bias=False))


def _mixed(convolution: Product1d, x: Tensor) -> Tensor:
    """x [S, c] plus its channels mixed by a convolution of one token."""
    return convolution.product(x) + x


def _rope(length: int, dim: int, device: torch.device) -> Tensor:
    """Cosine and sine of every angle: [length, dim / 2, 2]. In float32 throughout, as the reference."""
    steps = torch.arange(0, dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / ROPE_THETA ** (steps / dim)
    angles = torch.outer(torch.arange(length, device=device), frequencies)  # [length, dim / 2]
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + H/4]) of the first half of a head: x [B, S, 2, N, H], table [B, S, H/4, 2]."""
    cos, sin = table[:, :, None, None].unbind(-1)  # [B, S, 1, 1, H/4]
    a, b, rest = x.float().tensor_split((cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x.dtype)
