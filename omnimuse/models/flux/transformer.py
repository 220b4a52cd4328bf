"""The FLUX.1 transformer: blocks with two streams, text and image, that attend together, then blocks with one.

The arithmetic is that of diffusers' `FluxTransformer2DModel` without adapters; the blocks are those of
`components/two_streams.py`. What does not depend on the step, the projected text, its pooled vector, the guidance and
the rotary tables, is computed once per request by `FluxTransformer.prepare`.

Letters: R rows, S tokens, D width, H head dim; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.components.two_streams import (
    PATCH,
    TIME_SCALE,
    Blocks,
    TwoStreamInputs,
    TwoStreamNetwork,
    TwoStreamStatic,
    check_axes,
)
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.facts import read_facts

THETA = 10_000.0


@dataclass(frozen=True)
class FluxConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 12B models."""

    in_channels: int = 64
    out_channels: int = 0  # as many as come in
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @property
    def dim(self) -> int:
        """The width of the hidden states."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FluxConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        return read_facts(cls, config, "transformer/config.json", {"patch_size": (1,)})


@dataclass(frozen=True)
class FluxStatic(TwoStreamStatic):
    """What stays the same over all steps of one image: its text, its guidance and all tokens' positions."""

    pooled: Tensor  # [D], the text again, as one vector
    guidance: Tensor  # [D], zeros for a network that takes none


FluxInputs = TwoStreamInputs[FluxStatic]


class FluxTransformer(TwoStreamNetwork[FluxStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    def __init__(self, config: FluxConfig) -> None:
        dim = config.dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, config.num_single_layers)
        super().__init__(blocks, config.in_channels, config.joint_attention_dim, out=config.out_channels)
        self.config = config
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()
        self.guidance_embedder = TimestepEmbedding(dim, dim) if config.guidance_embeds else None
        self.pooled_embedder = nn.Sequential(
            nn.Linear(config.pooled_projection_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FluxTransformer:
        return cls(FluxConfig.from_dict(config))

    def prepare(
        self,
        texts: tuple[Tensor, Tensor],
        guidance: float,
        size: tuple[int, int],
        shown: Sequence[Tensor] = (),
    ) -> FluxStatic:
        """Text features [S, joint_attention_dim] and a pooled text [pooled_projection_dim], the guidance scale, height
        and width of the latents, and latents [c, h, w] of pictures that are shown -> what all steps share. A network
        without guidance embedding makes nothing of the scale.
        """
        weight, (features, pooled) = self.text_embedder.weight, texts
        text = self.text_embedder(features.to(weight))  # [S_text, D]
        vector = self.pooled_embedder(pooled.to(weight))  # [D]
        guided = torch.zeros_like(vector)
        if self.guidance_embedder is not None:
            guided = self.guidance_embedder(weight.new_full((1,), guidance) * TIME_SCALE)[0]  # [D]
        rope = self._rope(len(text), [size, *((each.shape[1], each.shape[2]) for each in shown)])
        return FluxStatic(text, rope, vector, guided, shown=torch.cat(self.embed(shown)) if shown else None)

    def vector(self, rows: Sequence[FluxInputs]) -> Tensor:
        pooled = torch.stack([row.static.pooled for row in rows])  # [R, D]
        guidance = torch.stack([row.static.guidance for row in rows])  # [R, D]
        return self.activation(self.time_embedder(self.times(rows)) + guidance + pooled)

    def _rope(self, text: int, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """All text tokens stand at the origin. Pictures spread over the second and third axis, that which is drawn at 0
        on the first, and those that are shown behind it.
        """
        device, places = self.text_embedder.weight.device, []
        for number, (height, width) in enumerate(sizes):
            axes = (range(number, number + 1), range(height // PATCH), range(width // PATCH))
            places.append(torch.cartesian_prod(*(torch.arange(a.start, a.stop, device=device) for a in axes)))
        positions = torch.cat([places[0].new_zeros(text, 3), *places])  # [S, 3]
        return rotary_table(positions, self.config.axes_dims_rope, THETA, exact=True)
