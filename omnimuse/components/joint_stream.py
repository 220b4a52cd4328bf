"""Transformers of pictures whose text and image have the same weights and modulations of their own (CogView4's kind).

The frame is that of `two_streams.py`: one sequence per row, text tokens before image tokens. A vector made of the time
and of what is told about the picture's size scales, shifts and gates every token, a text's in another way than an
image's. A family subclasses `JointNetwork` and says how its text is made, what it tells and where its tokens stand.

Letters: R rows, B batch, S tokens, D width, E width of the time's vector, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.components.two_stream_plan import GATHERED
from omnimuse.components.two_streams import (
    PATCH,
    Blocks,
    TwoStreamCond,
    TwoStreamInputs,
    TwoStreamNetwork,
    TwoStreamStatic,
)
from omnimuse.core.plans import Columns, Cut, Cutting, Rows
from omnimuse.layers.embedding import TimestepEmbedding, sinusoid
from omnimuse.layers.kernels import GatedSum, Rotation
from omnimuse.layers.norm import ModulatedNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.stack import Block

THETA = 10_000.0
EPS = 1e-5


@dataclass(frozen=True)
class JointConfig:
    """The facts that all such networks have in transformer/config.json; defaults are those of the published ones."""

    in_channels: int = 16
    num_layers: int = 30
    attention_head_dim: int = 40
    num_attention_heads: int = 64
    text_embed_dim: int = 4096
    time_embed_dim: int = 512
    condition_dim: int = 256

    @property
    def dim(self) -> int:
        """The width of the hidden states."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class JointStatic(TwoStreamStatic):
    """What stays the same over all steps of one image: its text, all tokens' positions and what is told of its size."""

    size: Tensor  # [E]


Static = TypeVar("Static", bound=JointStatic)


@dataclass(frozen=True)
class JointCond(TwoStreamCond):
    """What every block receives; `words`, packed [*, 1], tells which tokens are the text's."""

    words: Tensor = field(kw_only=True)

    def select(self, rows: Sequence[int]) -> Self:
        return replace(super().select(rows), words=self.layout.take(self.words, rows))

    def cut(self, part: Cut) -> Self | None:
        cut = super().cut(part)
        return None if cut is None else replace(cut, words=self.layout.share(self.words, part))

    def beside(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Layout]:
        """Keys and values of a block, and how they are packed; a family may add some that its rows remember."""
        return k, v, self.layout


class JointNetwork(TwoStreamNetwork[Static]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row.

    Times are spread over so many `waves`; a picture's size is told with so many `numbers`.
    """

    def __init__(self, config: JointConfig, *, waves: int, numbers: int) -> None:
        dim, time = config.dim, config.time_embed_dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, vector=time, eps=EPS)
        double = [JointBlock(blocks) for _ in range(config.num_layers)]
        super().__init__(blocks, PATCH * PATCH * config.in_channels, config.text_embed_dim, double=double)
        self.frequencies = config.condition_dim
        self.axes = (config.attention_head_dim // 2,) * 2
        told = numbers * config.condition_dim
        self.time_embedder = TimestepEmbedding(time, time, waves)
        self.size_embedder = nn.Sequential(nn.Linear(told, time), nn.SiLU(), nn.Linear(time, time))
        self.activation = nn.SiLU()

    def told(self, numbers: Sequence[float]) -> Tensor:
        """What all tokens are told of a picture's size, in pixels: [E]."""
        weight = self.text_embedder.weight
        return self.size_embedder(sinusoid(weight.new_tensor(numbers), self.frequencies).flatten().to(weight))

    def placed(self, text: int, rows: Tensor, columns: Tensor) -> Tensor:
        """The rotary table of so many text tokens, all at the origin, and an image's with these whole positions."""
        image = torch.cartesian_prod(rows, columns)  # [S_image, 2]
        return rotary_table(torch.cat([image.new_zeros(text, 2), image]), self.axes, THETA)

    def vector(self, rows: Sequence[TwoStreamInputs[Static]]) -> Tensor:
        times = torch.stack([row.t for row in rows])  # [R]
        return self.activation(self.time_embedder(times) + torch.stack([row.static.size for row in rows]))

    def plan(self) -> Mapping[str, Cutting]:
        block = "stack.double_blocks.*"
        return {
            "head.modulation": GATHERED,
            f"{block}.modulation": GATHERED,
            f"{block}.to_qkv": Columns(queries=1, keys=2),
            f"{block}.to_out": Rows(queries=1),
            f"{block}.mlp.0": Columns(others=1),
            f"{block}.mlp.2": Rows(others=1),
        }

    def _condition(self, rows: Sequence[TwoStreamInputs[Static]], image: Layout) -> JointCond:
        cond = super()._condition(rows, image)
        runs = zip(cond.text.lengths, cond.layout.lengths, strict=True)
        marks = [torch.arange(whole, device=cond.vector.device)[:, None] < text for text, whole in runs]
        facts = cond.layout, cond.text, cond.image, cond.rope, cond.vector
        return JointCond(*facts, words=cond.layout.pack(marks))


class JointBlock(Block[JointCond]):
    """One attention and one MLP for all tokens; text and image are each scaled, shifted and gated in their own way."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        dim, head_dim = blocks.dim, blocks.dim // blocks.heads
        self.modulation = nn.Linear(blocks.vector, 12 * dim)
        self.norm = ModulatedNorm(blocks.eps)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.norm_qk = nn.LayerNorm(head_dim, blocks.eps, elementwise_affine=False)
        self.core = Attention(blocks.heads, head_dim, "joint", category="self")
        self.to_out = nn.Linear(dim, dim)
        self.turn = Rotation()
        self.add = GatedSum()
        self.mlp = nn.Sequential(nn.Linear(dim, blocks.hidden), nn.GELU("tanh"), nn.Linear(blocks.hidden, dim))

    def forward(self, hidden: Tensor, cond: JointCond) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self._modulate(cond)
        hidden = self.add(hidden, gate, self._attend(self.norm(hidden, scale, shift), cond))
        return self.add(hidden, mlp_gate, self.mlp(self.norm(hidden, mlp_scale, mlp_shift)))

    def probe(self, hidden: Tensor, cond: JointCond) -> Tensor:
        """The image as the attention sees it; zeros for the text, which has no part in the relative change."""
        shift, scale, *_ = self._modulate(cond)
        return self.norm(hidden, scale, shift).masked_fill(cond.words, 0.0)

    def telling(self, change: Tensor, cond: JointCond) -> Tensor:
        """That of the image."""
        return change.masked_fill(cond.words, 0.0)

    def _modulate(self, cond: JointCond) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP, for every token: its text's or its image's.

        Text is not taken apart: it may be one token, for which compiled code would be another.
        """
        parts = self.modulation(cond.vector).chunk(12, dim=-1)  # [R, D] each, image and text in turns
        text, image = (cond.layout.expand(torch.cat(parts[start::2], dim=-1)) for start in (1, 0))
        return torch.where(cond.words, text, image).chunk(6, dim=-1)  # packed, [*, D] each

    def _attend(self, x: Tensor, cond: JointCond) -> Tensor:
        qkv = self.to_qkv(x).unflatten(-1, (3, self.core.num_heads, -1))  # [B, S, 3, N, H]
        # Halves of a head are turned against each other: put side by side, in queries and keys alike, as pairs are.
        qk = self.norm_qk(qkv[:, :, :2]).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        q, k = self.turn(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        k, v, keys = cond.beside(k, qkv[:, :, 2])
        return self.to_out(self.core(q, k, v, cond.layout, kv_layout=keys).flatten(-2))  # [B, S, D]
