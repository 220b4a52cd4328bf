"""The HunyuanVideo-1.5 transformer: blocks with two streams, text and video, that attend together (arXiv 2511.18870).

The arithmetic is that of diffusers' `HunyuanVideo15Transformer3DModel`; the blocks are those of
`components/two_streams.py`. The text stream holds what is seen in a picture, then the words in quotes, then the prompt;
the prompt passes a small network that is told the time, all else is computed once by `HunyuanVideoTransformer.prepare`.
The reference has places for tokens that are not there, and masks them; here there are none.

Letters: R rows, S tokens, D width, H head dim; c f h w latent channels, frames, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.components.patches import embedded
from omnimuse.components.two_streams import (
    EPS,
    Blocks,
    TwoStreamInputs,
    TwoStreamNetwork,
    TwoStreamStatic,
    check_axes,
)
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Columns, Cutting, Rows
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.steady import Product3d
from omnimuse.loader.facts import read_facts

GLYPH_WIDTH = 2048  # within the projection of the words in quotes
WORDS, GLYPHS, PICTURE = range(3)
"""Kinds of tokens in the text stream; each has a vector of its own, which is added to all of them."""
FIXED: Mapping[str, tuple[object, ...]] = {"patch_size": (1,), "patch_size_t": (1,), "qk_norm": ("rms_norm",)}
"""Options of the configuration that this file computes in one way only."""


@dataclass(frozen=True)
class HunyuanVideoConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 8.3B model.

    With `use_meanflow` the network may be told where a step ends.
    """

    in_channels: int = 65
    out_channels: int = 32
    num_attention_heads: int = 16
    attention_head_dim: int = 128
    num_layers: int = 54
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    text_embed_dim: int = 3584
    text_embed_2_dim: int = 1472
    image_embed_dim: int = 1152
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, ...] = (16, 56, 56)
    use_meanflow: bool = False

    def __post_init__(self) -> None:
        check_axes(self.rope_axes_dim, self.attention_head_dim)
        if self.in_channels != 2 * self.out_channels + 1:
            raise ModelError(
                f"transformer/config.json: in_channels={self.in_channels}, out_channels={self.out_channels}; "
                "the network is told noisy latents, given ones and which these are: 2 x out_channels + 1"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> HunyuanVideoConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        return read_facts(cls, config, "transformer/config.json", FIXED, {"target_size", "task_type"})

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class HunyuanVideoStatic(TwoStreamStatic):
    """What stays the same over all steps of one video: the last `words` tokens of its text are still to be refined."""

    words: int
    pooled: Tensor  # [D], the prompt again, as one vector
    known: Tensor  # [c + 1, f, h, w], latents of frames that are given, and a mask that says which these are
    times: Tensor | None = None  # [steps], those of all steps, for a network that is told where a step ends
    end: Tensor | None = None  # [], where this one does


HunyuanVideoInputs = TwoStreamInputs[HunyuanVideoStatic]


class HunyuanVideoTransformer(TwoStreamNetwork[HunyuanVideoStatic]):
    """Predicts the velocity from video to noise, one tensor [c, f, h, w] per row; times are those of the schedule."""

    patch = 1

    def __init__(self, config: HunyuanVideoConfig) -> None:
        dim, heads = config.dim, config.num_attention_heads
        blocks = Blocks(dim, heads, config.num_layers, mlp_ratio=config.mlp_ratio, rounds_once=False)
        super().__init__(blocks, config.in_channels, config.text_embed_dim, out=config.out_channels)
        self.config = config
        self.image_embedder: Product3d = Product3d(config.in_channels, dim, 1)  # as checkpoints store it
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.end_embedder = TimestepEmbedding(dim, dim) if config.use_meanflow else None
        self.activation = nn.SiLU()
        self.pooled_embedder = nn.Sequential(nn.Linear(config.text_embed_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.refiner = Refiner(dim, heads, config.num_refiner_layers, config.mlp_ratio)
        self.glyph_embedder = nn.Sequential(
            nn.LayerNorm(config.text_embed_2_dim),
            nn.Linear(config.text_embed_2_dim, GLYPH_WIDTH),
            nn.GELU(),
            nn.Linear(GLYPH_WIDTH, GLYPH_WIDTH),
            nn.GELU(),
            nn.Linear(GLYPH_WIDTH, dim),
        )
        self.picture_embedder = nn.Sequential(
            nn.LayerNorm(config.image_embed_dim),
            nn.Linear(config.image_embed_dim, config.image_embed_dim),
            nn.GELU(),
            nn.Linear(config.image_embed_dim, dim),
            nn.LayerNorm(dim),
        )
        self.kinds = nn.Embedding(3, dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> HunyuanVideoTransformer:
        return cls(HunyuanVideoConfig.from_dict(config))

    def prepare(
        self, features: Tensor, glyphs: Tensor | None, seen: Tensor | None, size: Sequence[int], known: Tensor | None
    ) -> HunyuanVideoStatic:
        """Features of the prompt [S, text_embed_dim], of its words in quotes [S, text_embed_2_dim] and of what is seen
        in a picture [S, image_embed_dim], the size (f, h, w) of the latents, and latents of given frames with a mask ->
        what all steps share.
        """
        weight = self.text_embedder.weight
        words = features.to(weight)
        pooled = self.pooled_embedder(words.float().mean(0, keepdim=True).to(weight))[0]  # [D]
        text = [self.text_embedder(words)]  # [S, D]
        if glyphs is not None:
            text.insert(0, self.glyph_embedder(glyphs.to(weight)) + self.kinds.weight[GLYPHS])
        if seen is not None:
            text.insert(0, self.picture_embedder(seen.to(weight)) + self.kinds.weight[PICTURE])
        told = weight.new_zeros(self.config.out_channels + 1, *size) if known is None else known.to(weight)
        tokens = torch.cat(text)
        return HunyuanVideoStatic(tokens, self._rope(len(tokens), size), len(words), pooled, told)

    def plan(self) -> Mapping[str, Cutting]:
        refiner: dict[str, Cutting] = {
            "refiner.blocks.*.to_qkv": Columns(queries=1, keys=2),
            "refiner.blocks.*.to_out": Rows(queries=1),
            "refiner.blocks.*.mlp.0": Columns(others=1),
            "refiner.blocks.*.mlp.2": Rows(others=1),
            "refiner.blocks.*.gates": Columns(others=1, gather=True),
        }
        return {**super().plan(), **(refiner if self.config.num_refiner_layers else {})}

    def vector(self, rows: Sequence[HunyuanVideoInputs]) -> Tensor:
        time = self.time_embedder(torch.stack([row.t for row in rows]))
        ends = [row.static.end for row in rows if row.static.end is not None]
        return self.activation(time + self.end_embedder(torch.stack(ends)) if self.end_embedder and ends else time)

    def texts(self, rows: Sequence[HunyuanVideoInputs]) -> list[Tensor]:
        times, pooled = (torch.stack(each) for each in zip(*((row.t, row.static.pooled) for row in rows), strict=True))
        layout = Layout(tuple(row.static.words for row in rows))
        words = layout.pack([row.static.text[-row.static.words :] for row in rows])
        refined = self.refiner(words, layout, times, pooled) + self.kinds.weight[WORDS]
        rest = [row.static.text[: -row.static.words] for row in rows]
        return [torch.cat(parts) for parts in zip(rest, layout.unpack(refined), strict=True)]

    def images(self, rows: Sequence[HunyuanVideoInputs]) -> list[Tensor]:
        known = ((row.latents.to(row.static.known), row.static.known) for row in rows)
        return [embedded(self.image_embedder, torch.cat(each)) for each in known]  # of [2c + 1, f, h, w] each

    def _rope(self, text: int, size: Sequence[int]) -> Tensor:
        """The text stands at the origin and the tokens of the video where they are."""
        axes = [torch.arange(length, device=self.text_embedder.weight.device) for length in size]
        video = torch.cartesian_prod(*axes)  # [f h w, 3]
        positions = torch.cat([video.new_zeros(text, 3), video])
        return rotary_table(positions, self.config.rope_axes_dim, self.config.rope_theta)


class Refiner(nn.Module):
    """The tokens of a prompt, as they are at a time."""

    def __init__(self, dim: int, heads: int, layers: int, mlp_ratio: float) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()
        self.blocks = nn.ModuleList(RefinerBlock(dim, heads, mlp_ratio) for _ in range(layers))

    def forward(self, words: Tensor, layout: Layout, times: Tensor, pooled: Tensor) -> Tensor:
        """Tokens packed by `layout`, times [R] and the prompts as vectors [R, D] -> tokens, packed alike."""
        vector = self.activation(self.time_embedder(times) + pooled)  # [R, D]
        for block in self.blocks:
            words = block(words, layout, vector)
        return words


class RefinerBlock(nn.Module):
    """Self attention and an MLP, both gated by the time and the whole of the prompt."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.core = Attention(heads, dim // heads, "refiner", category="self")
        self.to_out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        self.gates = nn.Linear(dim, 2 * dim)

    def forward(self, words: Tensor, layout: Layout, vector: Tensor) -> Tensor:
        gate, mlp_gate = layout.expand(self.gates(vector)).chunk(2, dim=-1)
        qkv = self.to_qkv(self.norm1(words)).unflatten(-1, (3, self.core.num_heads, -1))  # [B, S, 3, N, H]
        words = words + self.to_out(self.core(*qkv.unbind(2), layout).flatten(-2)) * gate
        return words + self.mlp(self.norm2(words)) * mlp_gate
