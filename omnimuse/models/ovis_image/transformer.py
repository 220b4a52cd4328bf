"""The Ovis-Image transformer: text and image as two streams with gated MLPs, then as one.

The arithmetic is that of diffusers' `OvisImageTransformer2DModel` without adapters; the blocks are those of
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
    EPS,
    PATCH,
    Blocks,
    TwoStreamInputs,
    TwoStreamNetwork,
    TwoStreamStatic,
    check_axes,
)
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.facts import read_facts

THETA = 10_000.0


@dataclass(frozen=True)
class OvisImageConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 7B model."""

    in_channels: int = 64
    num_layers: int = 6
    num_single_layers: int = 27
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 2048
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> OvisImageConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = config.get("in_channels", cls.in_channels)
        fixed = {"patch_size": (1,), "out_channels": (None, channels)}
        return read_facts(cls, config, "transformer/config.json", fixed)


class OvisImageTransformer(TwoStreamNetwork[TwoStreamStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    def __init__(self, config: OvisImageConfig) -> None:
        dim = config.num_attention_heads * config.attention_head_dim
        layers, single = config.num_layers, config.num_single_layers
        blocks = Blocks(dim, config.num_attention_heads, layers, single, gated="second")
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.text_norm = RMSNorm(config.joint_attention_dim, EPS)
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OvisImageTransformer:
        return cls(OvisImageConfig.from_dict(config))

    def prepare(self, features: Tensor, height: int, width: int) -> TwoStreamStatic:
        """Text features [S, joint_attention_dim] and the latent size -> what all steps share."""
        text = self.text_embedder(self.text_norm(features.to(self.text_embedder.weight)))  # [S_text, D]
        return TwoStreamStatic(text, self._rope(len(text), height // PATCH, width // PATCH))

    def vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor:
        return self.activation(self.time_embedder(self.times(rows)))

    def _rope(self, text: int, rows: int, columns: int) -> Tensor:
        """The text runs along the diagonal of the second and third axis; the image spreads over them."""
        device = self.text_embedder.weight.device
        along = torch.arange(text, device=device)
        axes = (torch.arange(length, device=device) for length in (1, rows, columns))
        words = torch.stack([torch.zeros_like(along), along, along], dim=1)  # [S_text, 3]
        positions = torch.cat([words, torch.cartesian_prod(*axes)])  # [S_text + S_image, 3]
        return rotary_table(positions, self.config.axes_dims_rope, THETA, exact=True)
