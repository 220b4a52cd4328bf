"""The Qwen-Image transformer: blocks with two streams, text and image, that attend together.

The arithmetic is that of diffusers' `QwenImageTransformer2DModel`; the blocks are those of
`components/two_streams.py`. What does not depend on the step, the projected text and the rotary tables, is computed
once per request by `QwenTransformer.prepare`.

Letters: R rows, S tokens, D width, H head dim; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> QwenConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {
            "patch_size": (PATCH,),
            "out_channels": (config.get("in_channels", cls.in_channels) // PATCH**2,),
            "guidance_embeds": (False,),
        }
        return read_facts(cls, config, "transformer/config.json", fixed, {"pooled_projection_dim"})


@dataclass(frozen=True)
class QwenStatic(TwoStreamStatic):
    """What stays the same where several frames of one size may be drawn together."""

    frames: int = field(default=1, kw_only=True)

    @property
    def text_tokens(self) -> int:
        """How many tokens the blocks see beside those of the first frame."""
        told = super().text_tokens
        assert self.rope is not None
        return len(self.rope) - (len(self.rope) - told) // self.frames


class QwenTransformer(TwoStreamNetwork[TwoStreamStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w], or [c, f, h, w] of several frames, per row."""

    def __init__(self, config: QwenConfig) -> None:
        dim = config.num_attention_heads * config.attention_head_dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, rounds_once=False)
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.text_norm = RMSNorm(config.joint_attention_dim, EPS)
        self.time_embedder = TimestepEmbedding(dim, dim, scale=TIME_SCALE)
        self.kind_embedder = nn.Embedding(2, dim) if config.use_additional_t_cond else None
        self.activation = nn.SiLU()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QwenTransformer:
        return cls(QwenConfig.from_dict(config))

    def prepare(
        self, features: Tensor, height: int, width: int, shown: Sequence[Tensor] = (), frames: int = 1
    ) -> TwoStreamStatic:
        """Text features [S, joint_attention_dim], the latent size, latents [c, h, w] of pictures that are shown, and
        how many frames are drawn -> what all steps share.
        """
        text = self.text_embedder(self.text_norm(features.to(self.text_embedder.weight)))  # [S_text, D]
        sizes = [*[(height, width)] * frames, *(each.shape[1:] for each in shown)]
        planes = list(range(len(sizes)))
        if self.config.use_layer3d_rope:
            planes[-1] = -1  # what is shown lies behind all frames, however many there are
        rope = self._rope(len(text), planes, [(high // PATCH, wide // PATCH) for high, wide in sizes])
        return QwenStatic(text, rope, shown=torch.cat(self.embed(shown)) if shown else None, frames=frames)

    def vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor:
        times = torch.stack([row.t for row in rows]).to(self.text_embedder.weight.dtype)  # [R]
        return self._modulating(self.time_embedder(times))

    def still_vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor | None:
        if not self.config.zero_cond_t:
            return None
        weight = self.text_embedder.weight
        return self._modulating(self.time_embedder(torch.zeros(len(rows), dtype=weight.dtype, device=weight.device)))

    def _modulating(self, times: Tensor) -> Tensor:
        """What modulates, of embedded times [R, D]; where a network draws pictures of two kinds, those of the first."""
        return self.activation(times if self.kind_embedder is None else times + self.kind_embedder.weight[0])

    def _rope(self, text: int, planes: Sequence[int], grids: Sequence[tuple[int, int]]) -> Tensor:
        """Every picture lies around the origin of a plane of its own, the one that is drawn on the first; the text goes
        on diagonally from where the largest ends.
        """
        device = self.text_embedder.weight.device
        pictures = []
        for plane, grid in zip(planes, grids, strict=True):
            sides = (torch.arange(length // 2 - length, length // 2, device=device) for length in grid)
            pictures.append(torch.cartesian_prod(torch.full((1,), plane, device=device), *sides))  # [S_picture, 3]
        start = max(length // 2 for grid in grids for length in grid)
        if self.config.use_layer3d_rope:
            start = max(start, len(grids) - 1)  # nor does it begin among the planes
        words = torch.arange(start, start + text, device=device)[:, None].expand(-1, 3)  # [S_text, 3]
        return rotary_table(torch.cat([words, *pictures]), self.config.axes_dims_rope, THETA)
