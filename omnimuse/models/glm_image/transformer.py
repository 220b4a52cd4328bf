"""The GLM-Image transformer: text and image attend together, with the same weights and modulations of their own.

The arithmetic is that of diffusers' `GlmImageTransformer2DModel`; the blocks are those of `components/joint_stream.py`.
A language model has said beforehand what is in the picture, as one token for every patch (the prior). What does not
depend on the step, the projected text, the prior, the size and the rotary table, is computed once per request by
`GlmImageTransformer.prepare`.

Letters: S tokens, D width, E width of the time's vector, N heads, H head dim; c h w latent channels, height, width;
L blocks; K tokens of pictures that are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.joint_stream import JointBlock, JointCond, JointConfig, JointNetwork, JointStatic
from omnimuse.components.two_stream_plan import GATHERED
from omnimuse.components.two_streams import PATCH, TwoStreamInputs
from omnimuse.core.plans import Columns, Cut, Cutting, Rows
from omnimuse.loader.facts import read_facts


@dataclass(frozen=True)
class GlmImageConfig(JointConfig):
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 7B model."""

    text_embed_dim: int = 1472
    prior_vq_quantizer_codebook_size: int = 16384

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
class GlmImageStatic(JointStatic):
    """What stays the same over all steps of one image: its text, its prior, its size and all tokens' positions."""

    prior: Tensor  # [S_image, D]
    known: Tensor | None  # [L, K, 2, N, H], what the pictures that are shown say, by block


GlmImageInputs = TwoStreamInputs[GlmImageStatic]


@dataclass(frozen=True)
class GlmImageCond(JointCond):
    """What every block receives; of rows that are shown pictures also what these say, by block.

    `known` has keys and values of the tokens of pictures, [L, K, 2, N, H], for every row, and `keys` counts those of
    rows with them. `kept` takes them of one picture, [L, S, 2, N, H], which then stands alone. `block` [1] counts the
    blocks that have run: a tensor, so that compiled code is the same for all.
    """

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
        return with_pictures(super().select(rows), known, self.block)

    def cut(self, part: Cut) -> GlmImageCond | None:
        """None where pictures have a say: their keys and values are no tokens of the rows, and lie whole everywhere."""
        return super().cut(part) if self.block is None else None

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


def with_pictures(cond: JointCond, known: tuple[Tensor | None, ...], block: Tensor | None = None) -> GlmImageCond:
    """`cond` of rows that are shown the pictures `known`, if any is, from the first block on or from `block`."""
    facts = (cond.layout, cond.text, cond.image, cond.rope, cond.vector)
    if all(each is None for each in known):
        return GlmImageCond(*facts, words=cond.words)
    counts = [0 if each is None else each.shape[1] for each in known]
    keys = Layout(tuple(own + more for own, more in zip(cond.layout.lengths, counts, strict=True)))
    start = torch.zeros(1, dtype=torch.int64, device=cond.vector.device) if block is None else block.clone()
    return GlmImageCond(*facts, words=cond.words, known=known, keys=keys, block=start)


class GlmImageTransformer(JointNetwork[GlmImageStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row; times run from 999 (noise) to 0."""

    def __init__(self, config: GlmImageConfig) -> None:
        super().__init__(config, waves=config.time_embed_dim, numbers=4)
        dim, self.config = config.dim, config
        self.text_mlp = nn.Sequential(nn.GELU(), nn.Linear(dim, dim))
        self.prior_embedder = nn.Embedding(config.codes, dim)
        self.prior_mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

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
        return GlmImageStatic(text, rope, self._size(size), self._prior(prior, size), shown)

    def look(self, latents: Tensor, prior: Tensor, size: Size) -> Tensor:
        """Latents [c, h, w] of a picture of that size, and the prior's token of every patch [S] -> what it says.

        Keys and values of its tokens, by block: [L, S, 2, N, H]. The picture is clean, and sees nothing else.
        """
        [image] = self.embed([latents])
        hidden = image + self._prior(prior, size)
        [block, *_] = self.stack.blocks()
        assert isinstance(block, JointBlock)
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
        """Where the picture was cut from, the first corner, and its size in pixels: [E]."""
        return self.told((0.0, 0.0, *size.pixels))

    def plan(self) -> Mapping[str, Cutting]:
        return {
            **super().plan(),
            "prior_mlp.0": Columns(others=1),
            "prior_mlp.2": Rows(others=1),
            "text_mlp.1": GATHERED,
        }

    def images(self, rows: Sequence[GlmImageInputs]) -> list[Tensor]:
        return [image + row.static.prior for image, row in zip(super().images(rows), rows, strict=True)]

    def _condition(self, rows: Sequence[GlmImageInputs], image: Layout) -> GlmImageCond:
        return with_pictures(super()._condition(rows, image), tuple(row.static.known for row in rows))

    def _rope(self, text: int, size: Size) -> Tensor:
        """The image spreads over both axes from the origin, where all text tokens stand."""
        device = self.text_embedder.weight.device
        return self.placed(text, *(torch.arange(length, device=device) for length in size.patches))
