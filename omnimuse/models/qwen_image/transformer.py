"""The Qwen-Image transformer: blocks with two streams, text and image, that attend together.

The arithmetic is that of diffusers' `QwenImageTransformer2DModel`; the blocks are those of
`components/two_streams.py`. What does not depend on the step, the projected text and the rotary tables, is computed
once per request by `QwenTransformer.prepare`.

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
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.facts import read_facts

THETA = 10_000.0
EPS = 1e-6


@dataclass(frozen=True)
class QwenConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 20B model."""

    in_channels: int = 64
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QwenConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {
            "patch_size": (PATCH,),
            "out_channels": (config.get("in_channels", cls.in_channels) // PATCH**2,),
            "guidance_embeds": (False,),
            "use_additional_t_cond": (False,),
            "use_layer3d_rope": (False,),
        }
        return read_facts(cls, config, "transformer/config.json", fixed, {"pooled_projection_dim"})


class QwenTransformer(TwoStreamNetwork[TwoStreamStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    def __init__(self, config: QwenConfig) -> None:
        dim = config.num_attention_heads * config.attention_head_dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, rounds_once=False)
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.text_norm = RMSNorm(config.joint_attention_dim, EPS)
        self.time_embedder = TimestepEmbedding(dim, dim, scale=TIME_SCALE)
        self.activation = nn.SiLU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QwenTransformer:
        return cls(QwenConfig.from_dict(config))

    def prepare(self, features: Tensor, height: int, width: int, shown: Sequence[Tensor] = ()) -> TwoStreamStatic:
        """Text features [S, joint_attention_dim], the latent size, and latents [c, h, w] of pictures that are shown ->
        what all steps share.
        """
        text = self.text_embedder(self.text_norm(features.to(self.text_embedder.weight)))  # [S_text, D]
        sizes = [(height, width), *(each.shape[1:] for each in shown)]
        rope = self._rope(len(text), [(high // PATCH, wide // PATCH) for high, wide in sizes])
        return TwoStreamStatic(text, rope, shown=torch.cat(self.embed(shown)) if shown else None)

    def vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor:
        times = torch.stack([row.t for row in rows]).to(self.text_embedder.weight.dtype)  # [R]
        return self.activation(self.time_embedder(times))

    def still_vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor | None:
        if not self.config.zero_cond_t:
            return None
        weight = self.text_embedder.weight
        return self.activation(self.time_embedder(torch.zeros(len(rows), dtype=weight.dtype, device=weight.device)))

    def _rope(self, text: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Every picture lies around the origin of a plane of its own, the one that is drawn on the first; the text goes
        on diagonally from where the largest ends.
        """
        device = self.text_embedder.weight.device
        planes = []
        for plane, grid in enumerate(grids):
            sides = (torch.arange(length // 2 - length, length // 2, device=device) for length in grid)
            planes.append(torch.cartesian_prod(torch.full((1,), plane, device=device), *sides))  # [S_picture, 3]
        start = max(length // 2 for grid in grids for length in grid)
        words = torch.arange(start, start + text, device=device)[:, None].expand(-1, 3)  # [S_text, 3]
        return rotary_table(torch.cat([words, *planes]), self.config.axes_dims_rope, THETA)
