"""The LongCat-Image transformer: text and image as two streams, then as one.

The arithmetic is that of diffusers' `LongCatImageTransformer2DModel` without adapters; the blocks are those of
`components/two_streams.py`. The projected text and the rotary tables are computed once per request, by `prepare`.

Letters: R rows, S tokens, D width, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.components.two_streams import (
    PATCH,
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
AFTER = 512  # text tokens at most, beside pictures: where the image's positions begin


@dataclass(frozen=True)
class LongCatImageConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 6B model."""

    in_channels: int = 64
    num_layers: int = 10
    num_single_layers: int = 20
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LongCatImageConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = config.get("in_channels", cls.in_channels)
        fixed = {"patch_size": (1,), "out_channels": (None, channels)}
        return read_facts(cls, config, "transformer/config.json", fixed, ignored=("pooled_projection_dim",))


class LongCatImageTransformer(TwoStreamNetwork[TwoStreamStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    def __init__(self, config: LongCatImageConfig) -> None:
        dim = config.num_attention_heads * config.attention_head_dim
        layers, single = config.num_layers, config.num_single_layers
        blocks = Blocks(dim, config.num_attention_heads, layers, single)
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LongCatImageTransformer:
        return cls(LongCatImageConfig.from_dict(config))

    def prepare(self, features: Tensor, height: int, width: int, shown: Sequence[Tensor] = ()) -> TwoStreamStatic:
        """Text features [S, joint_attention_dim], the latent size, and latents [c, h, w] of pictures that are shown ->
        what all steps share.
        """
        text = self.text_embedder(features.to(self.text_embedder.weight))  # [S_text, D]
        sizes = [(height, width), *(each.shape[1:] for each in shown)]
        rope = self._rope(len(text), [(high // PATCH, wide // PATCH) for high, wide in sizes])
        return TwoStreamStatic(text, rope, shown=torch.cat(self.embed(shown)) if shown else None)

    def vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor:
        return self.activation(self.time_embedder(self.times(rows)))

    def _rope(self, text: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """The text runs along the diagonal of the second and third axis; the image, on the next plane of the first,
        spreads over them from where the longest text ends; pictures that are shown do so on further planes.
        """
        device = self.text_embedder.weight.device
        along = torch.arange(text, device=device)
        words, start = torch.stack([torch.zeros_like(along), along, along], dim=1), max(AFTER, text)  # [S_text, 3]
        planes = []
        for plane, grid in enumerate(grids, 1):
            sides = (torch.arange(start, start + length, device=device) for length in grid)
            planes.append(torch.cartesian_prod(torch.full((1,), plane, device=device), *sides))  # [S_picture, 3]
        return rotary_table(torch.cat([words, *planes]), self.config.axes_dims_rope, THETA, exact=True)
