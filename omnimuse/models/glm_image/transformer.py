"""The GLM-Image transformer: text and image attend together, with the same weights and modulations of their own.

The arithmetic is that of diffusers' `GlmImageTransformer2DModel`; the frame is that of `components/two_streams.py`. A
language model has said beforehand what is in the picture, as one token for every patch (the prior). What does not
depend on the step, the projected text, the prior, the size and the rotary table, is computed once per request by
`GlmImageTransformer.prepare`.

Letters: R rows, B batch, S tokens, D width, E width of the time's vector, N heads, H head dim; c h w latent channels,
height, width; L blocks; K tokens of pictures that are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from omnimuse.loader.facts import read_facts

THETA = 10_000.0
EPS = 1e-5


@dataclass(frozen=True)
class GlmImageConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 7B model."""

    in_channels: int = 16
    num_layers: int = 30
    attention_head_dim: int = 40
    num_attention_heads: int = 64
    text_embed_dim: int = 1472
    time_embed_dim: int = 512
    condition_dim: int = 256
    prior_vq_quantizer_codebook_size: int = 16384

    @property
    def dim(self) -> int:
        """The width of the hidden states."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def codes(self) -> int:
        """How many tokens of a prior there are."""
        return self.prior_vq_quantizer_codebook_size

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GlmImageConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {"patch_size": (PATCH,), "out_channels": (config.get("in_channels", cls.in_channels),)}
        return read_facts(cls, config, "transformer/config.json", fixed)


@dataclass(frozen=True)
class Size:
    """Height and width of a picture, in pixels and in patches."""

    pixels: tuple[int, int]
    patches: tuple[int, int]


@dataclass(frozen=True)
class GlmImageStatic(TwoStreamStatic):
    """What stays the same over all steps of one image: its text, its prior, its size and all tokens' positions."""

    prior: Tensor  # [S_image, D]
    size: Tensor  # [E]
    known: Tensor | None  # [L, K, 2, N, H], what the pictures that are shown say, by block


GlmImageInputs = TwoStreamInputs[GlmImageStatic]


@dataclass(frozen=True)
class GlmImageCond(TwoStreamCond):
    """What every block receives; of rows that are shown pictures also what these say, by block.

    `words`, packed [*, 1], tells which tokens are the text's. `known` has keys and values of the tokens of pictures,
    [L, K, 2, N, H], for every row, and `keys` counts those of rows with them. `kept` takes them of one picture,
    [L, S, 2, N, H], which then stands alone. `block` [1] counts the blocks that have run: a tensor, so that compiled
    code is the same for all.
    """

    words: Tensor | None = None
    known: tuple[Tensor | None, ...] = ()
    keys: Layout | None = None
    kept: Tensor | None = None
    block: Tensor | None = None

    @property
    def dense(self) -> bool:
        """Whether rows are equally long, and not several with pictures of their own."""
        return super().dense and len(self.known) < 2

    def select(self, rows: Sequence[int]) -> GlmImageCond:
        if self.kept is not None:
            return self  # one picture, alone
        known = tuple(self.known[row] for row in rows) if self.known else ()
        assert self.words is not None
        return with_pictures(super().select(rows), self.layout.take(self.words, rows), known, self.block)

    def cut(self, part: Cut) -> GlmImageCond | None:
        """None where pictures have a say: their keys and values are no tokens of the rows, and lie whole everywhere."""
        cut = super().cut(part) if self.block is None else None
        assert self.words is not None
        return None if cut is None else with_pictures(cut, self.layout.share(self.words, part), ())

    def after(self, blocks: int) -> GlmImageCond:
        """The same for a run that begins behind so many blocks."""
        return self if self.block is None else replace(self, block=torch.full_like(self.block, blocks))

    def beside(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Layout]:
        """Keys and values of a block, and before them those of pictures that are shown; how they are packed."""
        if self.block is None:
            return k, v, self.layout
        if self.kept is not None:
            self.kept.index_copy_(0, self.block, torch.stack([k, v], dim=2))
        stored = [None if known is None else known.index_select(0, self.block)[0] for known in self.known]
        self.block.add_(1)
        if self.keys is None:
            return k, v, self.layout
        if self.dense:  # one row
            k, v = (
                torch.cat([*(kv[None, :, side] for kv in stored if kv is not None), x], dim=1)
                for side, x in enumerate((k, v))
            )
            return k, v, self.keys
        packed = []
        for side, x in enumerate((k, v)):
            rows = zip(stored, self.layout.unpack(x), strict=True)
            packed.append(self.keys.pack([x if kv is None else torch.cat([kv[:, side], x]) for kv, x in rows]))
        return packed[0], packed[1], self.keys


def with_pictures(
    cond: TwoStreamCond, words: Tensor, known: tuple[Tensor | None, ...], block: Tensor | None = None
) -> GlmImageCond:
    """`cond` of rows that are shown the pictures `known`, if any is, from the first block on or from `block`."""
    facts = (cond.layout, cond.text, cond.image, cond.rope, cond.vector)
    if all(each is None for each in known):
        return GlmImageCond(*facts, words=words)
    counts = [0 if each is None else each.shape[1] for each in known]
    keys = Layout(tuple(own + more for own, more in zip(cond.layout.lengths, counts, strict=True)))
    start = torch.zeros(1, dtype=torch.int64, device=cond.vector.device) if block is None else block.clone()
    return GlmImageCond(*facts, words=words, known=known, keys=keys, block=start)


class GlmImageTransformer(TwoStreamNetwork[GlmImageStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row; times run from 999 (noise) to 0."""

    def __init__(self, config: GlmImageConfig) -> None:
        dim, time = config.dim, config.time_embed_dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, vector=time, eps=EPS)
        own = [GlmImageBlock(blocks) for _ in range(config.num_layers)]
        super().__init__(blocks, PATCH * PATCH * config.in_channels, config.text_embed_dim, double=own)
        self.config = config
        self.text_mlp = nn.Sequential(nn.GELU(), nn.Linear(dim, dim))
        self.prior_embedder = nn.Embedding(config.codes, dim)
        self.prior_mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_embedder = TimestepEmbedding(time, time, time)
        self.size_embedder = nn.Sequential(nn.Linear(4 * config.condition_dim, time), nn.SiLU(), nn.Linear(time, time))
        self.activation = nn.SiLU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GlmImageTransformer:
        return cls(GlmImageConfig.from_dict(config))

    def prepare(
        self, features: Tensor, prior: Tensor | None, size: Size, known: Sequence[Tensor] = ()
    ) -> GlmImageStatic:
        """Text features [S, text_embed_dim], the prior's token of every patch [S_image] (None: there is none), the size
        of what is drawn, and what pictures that are shown say -> what all steps share.
        """
        text = self.text_mlp(self.text_embedder(features.to(self.text_embedder.weight)))  # [S_text, D]
        rope = self._rope(len(text), size)
        shown = torch.cat(list(known), dim=1) if known else None
        return GlmImageStatic(text, rope, self._prior(prior, size), self._size(size), shown)

    def look(self, latents: Tensor, prior: Tensor, size: Size) -> Tensor:
        """Latents [c, h, w] of a picture of that size, and the prior's token of every patch [S] -> what it says.

        Keys and values of its tokens, by block: [L, S, 2, N, H]. The picture is clean, and sees nothing else.
        """
        [image] = self.embed([latents])
        hidden = image + self._prior(prior, size)
        [block, *_] = self.stack.blocks()
        assert isinstance(block, GlmImageBlock)
        heads = block.core.num_heads, block.core.head_dim
        kept = hidden.new_empty(self.config.num_layers, len(hidden), 2, *heads)
        layout, start = Layout((len(hidden),)), torch.zeros(1, dtype=torch.int64, device=hidden.device)
        vector = self.activation(self.time_embedder(start.float()) + self._size(size))  # [1, E]
        rope = layout.pack([self._rope(0, size)])
        words = torch.zeros(1, len(hidden), 1, dtype=torch.bool, device=hidden.device)
        cond = GlmImageCond(layout, layout, layout, rope, vector, words=words, kept=kept, block=start)
        self.stack(layout.pack([hidden]), cond)
        return kept

    def _prior(self, prior: Tensor | None, size: Size) -> Tensor:
        """What every patch is told: [S_image, D]."""
        if prior is None:
            rows, columns = size.patches
            return self.prior_mlp(self.text_embedder.weight.new_zeros(rows * columns, self.config.dim))
        return self.prior_mlp(self.prior_embedder(prior))

    def _size(self, size: Size) -> Tensor:
        """The size in pixels, and where the picture was cut from, the first corner: [E]."""
        weight = self.text_embedder.weight
        told = weight.new_tensor([0.0, 0.0, *size.pixels])
        return self.size_embedder(sinusoid(told, self.config.condition_dim).flatten().to(weight))

    def plan(self) -> Mapping[str, Cutting]:
        block = "stack.double_blocks.*"
        return {
            "prior_mlp.0": Columns(others=1),
            "prior_mlp.2": Rows(others=1),
            "text_mlp.1": GATHERED,
            "head.modulation": GATHERED,
            f"{block}.modulation": GATHERED,
            f"{block}.to_qkv": Columns(queries=1, keys=2),
            f"{block}.to_out": Rows(queries=1),
            f"{block}.mlp.0": Columns(others=1),
            f"{block}.mlp.2": Rows(others=1),
        }

    def vector(self, rows: Sequence[GlmImageInputs]) -> Tensor:
        times = torch.stack([row.t for row in rows])  # [R]
        return self.activation(self.time_embedder(times) + torch.stack([row.static.size for row in rows]))

    def images(self, rows: Sequence[GlmImageInputs]) -> list[Tensor]:
        return [image + row.static.prior for image, row in zip(super().images(rows), rows, strict=True)]

    def _condition(self, rows: Sequence[GlmImageInputs], image: Layout) -> TwoStreamCond:
        cond, known = super()._condition(rows, image), tuple(row.static.known for row in rows)
        runs = zip(cond.text.lengths, cond.layout.lengths, strict=True)
        marks = [torch.arange(whole, device=cond.vector.device)[:, None] < text for text, whole in runs]
        return with_pictures(cond, cond.layout.pack(marks), known)

    def _rope(self, text: int, size: Size) -> Tensor:
        """The image spreads over both axes from the origin, where all text tokens stand."""
        device, half = self.text_embedder.weight.device, self.config.attention_head_dim // 2
        image = torch.cartesian_prod(*(torch.arange(length, device=device) for length in size.patches))
        return rotary_table(torch.cat([image.new_zeros(text, 2), image]), (half, half), THETA)


class GlmImageBlock(Block[GlmImageCond]):
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

    def forward(self, hidden: Tensor, cond: GlmImageCond) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self._modulate(cond)
        hidden = self.add(hidden, gate, self._attend(self.norm(hidden, scale, shift), cond))
        return self.add(hidden, mlp_gate, self.mlp(self.norm(hidden, mlp_scale, mlp_shift)))

    def probe(self, hidden: Tensor, cond: GlmImageCond) -> Tensor:
        """The image as the attention sees it; zeros for the text, which has no part in the relative change."""
        shift, scale, *_ = self._modulate(cond)
        assert cond.words is not None
        return self.norm(hidden, scale, shift).masked_fill(cond.words, 0.0)

    def telling(self, change: Tensor, cond: GlmImageCond) -> Tensor:
        """That of the image."""
        assert cond.words is not None
        return change.masked_fill(cond.words, 0.0)

    def _modulate(self, cond: GlmImageCond) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP, for every token: its text's or its image's.

        Text is not taken apart: it may be one token, for which compiled code would be another.
        """
        assert cond.words is not None
        parts = self.modulation(cond.vector).chunk(12, dim=-1)  # [R, D] each, image and text in turns
        text, image = (cond.layout.expand(torch.cat(parts[start::2], dim=-1)) for start in (1, 0))
        return torch.where(cond.words, text, image).chunk(6, dim=-1)  # packed, [*, D] each

    def _attend(self, x: Tensor, cond: GlmImageCond) -> Tensor:
        qkv = self.to_qkv(x).unflatten(-1, (3, self.core.num_heads, -1))  # [B, S, 3, N, H]
        # Halves of a head are turned against each other: put side by side, in queries and keys alike, as pairs are.
        qk = self.norm_qk(qkv[:, :, :2]).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        q, k = self.turn(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        k, v, keys = cond.beside(k, qkv[:, :, 2])
        return self.to_out(self.core(q, k, v, cond.layout, kv_layout=keys).flatten(-2))  # [B, S, D]
