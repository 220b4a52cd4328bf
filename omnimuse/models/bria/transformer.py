"""The Bria transformer: text and image as two streams, then as one; FLUX's without a pooled text and without guidance.

The arithmetic is that of diffusers' `BriaTransformer2DModel` without adapters; the blocks are those of
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


@dataclass(frozen=True)
class BriaConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the reference."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    rope_theta: float = 10000

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BriaConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {"patch_size": (1,), "guidance_embeds": (False,), "time_theta": (10000,)}
        return read_facts(cls, config, "transformer/config.json", fixed, {"pooled_projection_dim"})


class BriaTransformer(TwoStreamNetwork[TwoStreamStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row; times run from 1000 (noise) to 0."""

    def __init__(self, config: BriaConfig) -> None:
        dim = config.num_attention_heads * config.attention_head_dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, config.num_single_layers)
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BriaTransformer:
        return cls(BriaConfig.from_dict(config))

    def prepare(self, features: Tensor | None, height: int, width: int, length: int) -> TwoStreamStatic:
        """Text features [S, joint_attention_dim], or `length` tokens of zeros for no text, and the latent size -> what
        all steps share.
        """
        weight = self.text_embedder.weight
        features = weight.new_zeros(length, self.config.joint_attention_dim) if features is None else features
        text = self.text_embedder(features.to(weight))  # [S_text, D]
        return TwoStreamStatic(text, self._rope(len(text), height // PATCH, width // PATCH))

    def vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor:
        return self.activation(self.time_embedder(torch.stack([row.t for row in rows])))

    def _rope(self, text: int, rows: int, columns: int) -> Tensor:
        """All text tokens stand at the origin; the image spreads over the second and third axis."""
        axes = (torch.arange(length, device=self.text_embedder.weight.device) for length in (1, rows, columns))
        image = torch.cartesian_prod(*axes)  # [S_image, 3]
        positions = torch.cat([image.new_zeros(text, 3), image])  # [S_text + S_image, 3]
        return rotary_table(positions, self.config.axes_dims_rope, self.config.rope_theta, exact=True)
