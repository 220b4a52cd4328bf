"""The transformer of Stable Diffusion 3 and 3.5 (arXiv 2403.03206): blocks with two streams, text and image.

The arithmetic is that of diffusers' `SD3Transformer2DModel`; the blocks are those of `components/two_streams.py`. In
some checkpoints the image also attends to itself in the first blocks. What does not depend on the step, the projected
text and its pooled vector, is computed once per request by `Sd3Transformer.prepare`.

Letters: R rows, B batch, S tokens, D width, N heads, H head dim; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.components.patches import PATCH, patchify, unpatchify
from omnimuse.components.two_streams import (
    Blocks,
    DoubleBlock,
    Entrance,
    Projection,
    Stream,
    TwoStreamCond,
    TwoStreamInputs,
    TwoStreamNetwork,
    TwoStreamStatic,
)
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.plans import Columns, Cutting, Rows
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.kernels import GatedSum
from omnimuse.layers.steady import Product2d
from omnimuse.loader.facts import read_facts
from omnimuse.models.stable_diffusion_3.spec import SKIPPED


@dataclass(frozen=True)
class Sd3Config:
    """The facts in the checkpoint's transformer/config.json; default sizes are those of the published 3.5 large.

    `pos_embed_max_size` patches a side have places; in `dual_attention_layers` the image attends to itself besides.
    """

    in_channels: int = 16
    num_layers: int = 38
    attention_head_dim: int = 64
    num_attention_heads: int = 38
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 2432
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 192
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str = ""

    def __post_init__(self) -> None:
        if self.caption_projection_dim != self.dim:
            raise ModelError(
                f"transformer/config.json: caption_projection_dim={self.caption_projection_dim}; it must be the width, "
                f"{self.dim}"
            )
        if self.qk_norm not in ("", "rms_norm"):
            raise ModelError(f"transformer/config.json: qk_norm={self.qk_norm!r} is not supported; only rms_norm is")
        if not all(0 <= layer < self.num_layers - 1 for layer in self.dual_attention_layers):
            raise ModelError(
                f"transformer/config.json: dual_attention_layers={self.dual_attention_layers}; they must be among the "
                f"{self.num_layers} blocks, without the last"
            )

    @property
    def dim(self) -> int:
        """The width of the hidden states."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Sd3Config:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {"patch_size": (PATCH,), "out_channels": (None, config.get("in_channels", cls.in_channels))}
        return read_facts(cls, config, "transformer/config.json", fixed, {"sample_size"})


@dataclass(frozen=True)
class Sd3Static(TwoStreamStatic):
    """What stays the same over all steps of one image: its text, and the places of its patches."""

    pooled: Tensor  # [D], the text again, as one vector
    places: Tensor  # [S_image, D]
    skipped: Tensor | None = None  # bool [num_layers], which blocks are left out


Sd3Inputs = TwoStreamInputs[Sd3Static]


class Sd3Transformer(TwoStreamNetwork[Sd3Static]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row; times run from 1000 (noise) to 0."""

    def __init__(self, config: Sd3Config) -> None:
        dim, channels = config.dim, config.in_channels
        blocks = Blocks(dim, config.num_attention_heads, 0, normed=bool(config.qk_norm), rounds_once=False)
        super().__init__(
            blocks, PATCH * PATCH * channels, config.joint_attention_dim, double=double_blocks(config, blocks)
        )
        self.config = config
        self.image_embedder = PatchEmbedder(channels, dim, PATCH, stride=PATCH)
        self.places = nn.Parameter(torch.zeros(1, config.pos_embed_max_size**2, dim))
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()
        self.pooled_embedder = nn.Sequential(
            nn.Linear(config.pooled_projection_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sd3Transformer:
        return cls(Sd3Config.from_dict(config))

    def prepare(
        self, features: Tensor, pooled: Tensor, height: int, width: int, skipped: Sequence[int] = ()
    ) -> Sd3Static:
        """Text features [S, joint_attention_dim] and a pooled text [pooled_projection_dim], height and width of the
        latents, and which blocks are left out -> what all steps share.
        """
        weight, most = self.text_embedder.weight, self.config.pos_embed_max_size
        rows, columns = height // PATCH, width // PATCH
        top, left = (most - rows) // 2, (most - columns) // 2
        middle = self.places.view(most, most, -1)[top : top + rows, left : left + columns]
        places = middle.clone(memory_format=torch.contiguous_format).flatten(0, 1)  # [S_image, D]
        text = self.text_embedder(features.to(weight))  # [S_text, D]
        return Sd3Static(
            text, None, self.pooled_embedder(pooled.to(weight)), places, self._skipped(skipped, text.device)
        )

    def _skipped(self, layers: Sequence[int], device: torch.device) -> Tensor | None:
        if not layers:
            return None
        count = self.config.num_layers
        if not all(0 <= layer < count for layer in layers):
            raise RequestError(
                f"skip_guidance_layers={list(layers)} are not all blocks of this network; use 0 to {count - 1}",
                "extra.skip_guidance_layers",
            )
        return torch.tensor([layer in layers for layer in range(count)], device=device)

    def _condition(self, rows: Sequence[Sd3Inputs], image: Layout) -> TwoStreamCond:
        cond = super()._condition(rows, image)
        named = [row.static.skipped for row in rows]
        if all(skipped is None for skipped in named):
            return cond
        none = cond.vector.new_zeros(self.config.num_layers, dtype=torch.bool)
        return replace(cond, shared={SKIPPED: torch.stack([none if each is None else each for each in named])})

    def plan(self) -> Mapping[str, Cutting]:
        alone: dict[str, Cutting] = {"stack.double_blocks.*.qkv.linear": Columns(queries=1, keys=2)}
        alone |= {"stack.double_blocks.*.to_out": Rows(queries=1)}
        return {**super().plan(), **alone} if self.config.dual_attention_layers else super().plan()

    def vector(self, rows: Sequence[Sd3Inputs]) -> Tensor:
        times = torch.stack([row.t for row in rows])  # [R], as exact as the schedule has them
        return self.activation(self.time_embedder(times) + torch.stack([row.static.pooled for row in rows]))

    def embed(self, latents: Sequence[Tensor]) -> list[Tensor]:
        return [self.image_embedder(each) for each in latents]

    def images(self, rows: Sequence[Sd3Inputs]) -> list[Tensor]:
        images = zip(super().images(rows), rows, strict=True)
        return [image + row.static.places for image, row in images]

    def restore(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return unpatchify(x, size, last=True)


def double_blocks(config: Sd3Config, blocks: Blocks) -> Iterator[DoubleBlock]:
    """The blocks of such a network, in order."""
    for layer in range(config.num_layers):
        if layer == config.num_layers - 1:
            yield LastBlock(blocks, layer)
        else:
            yield DualBlock(blocks, layer) if layer in config.dual_attention_layers else Sd3Block(blocks, layer)


class Sd3Block(DoubleBlock):
    """Block number `layer`, which some rows may leave out."""

    def __init__(self, blocks: Blocks, layer: int, text: Entrance | None = None, image: Stream | None = None) -> None:
        super().__init__(blocks, text, image)
        self.layer = layer

    def forward(self, hidden: Tensor, cond: TwoStreamCond) -> Tensor:
        found = super().forward(hidden, cond)
        if SKIPPED not in cond.shared:
            return found
        return torch.where(cond.layout.expand(cond.shared[SKIPPED][:, self.layer : self.layer + 1]), hidden, found)


class LastBlock(Sd3Block):
    """A block whose text nobody sees afterwards: it only takes part in the attention."""

    def __init__(self, blocks: Blocks, layer: int) -> None:
        super().__init__(blocks, layer, text=LastText(blocks, "text", parts=2))


class LastText(Entrance):
    """The text that ends with its block."""

    def modulate(self, cond: TwoStreamCond, layout: Layout) -> tuple[Tensor, ...]:
        scale, shift = super().modulate(cond, layout)
        return shift, scale


class DualBlock(Sd3Block):
    """A block whose image also attends to itself alone, from the same norm, modulated in its own way."""

    def __init__(self, blocks: Blocks, layer: int) -> None:
        super().__init__(blocks, layer, image=Stream(blocks, "image", parts=9))
        self.qkv = Projection(blocks)
        self.alone = Attention(blocks.heads, blocks.dim // blocks.heads, "image", category="self")
        self.to_out = blocks.linear(blocks.dim, blocks.dim)
        self.add = GatedSum()

    def beside(self, image: Tensor, cond: TwoStreamCond, mods: Sequence[Tensor]) -> Tensor:
        shift, scale, gate = mods[6:]
        qk, v, _ = self.qkv(self.image.norm(image, scale, shift), self.alone.num_heads)
        q, k = qk.unbind(2)  # [B, S, N, H] each
        return self.add(image, gate, self.to_out(self.alone(q, k, v, cond.image).flatten(-2)))


class PatchEmbedder(Product2d):
    """The convolution over patches, as one product of each picture's own."""

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [c, h, w] -> [S, D]."""
        return self.product(patchify(latents.to(self.weight)))
