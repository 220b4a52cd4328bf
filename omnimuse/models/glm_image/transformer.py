"""The GLM-Image transformer: text and image attend together, with the same weights and modulations of their own.

The arithmetic is that of diffusers' `GlmImageTransformer2DModel`; the blocks are those of `components/joint_stream.py`,
that may be shown pictures.
A language model has said beforehand what is in the picture, as one token for every patch (the prior). What does not
depend on the step, the projected text, the prior, the size and the rotary table, is computed once per request by
`GlmImageTransformer.prepare`.

Letters: S tokens, D width, E width of the time's vector; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.components.joint_shown import ShownNetwork, ShownStatic
from omnimuse.components.joint_stream import JointConfig
from omnimuse.components.two_stream_plan import GATHERED
from omnimuse.components.two_streams import PATCH, TwoStreamInputs
from omnimuse.core.plans import Columns, Cutting, Rows
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
class GlmImageStatic(ShownStatic):
    """What stays the same over all steps of one image: its text, its prior, its size and all tokens' positions."""

    prior: Tensor  # [S_image, D]


GlmImageInputs = TwoStreamInputs[GlmImageStatic]


class GlmImageTransformer(ShownNetwork[GlmImageStatic]):
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
        return GlmImageStatic(text, rope, self._size(size), shown, self._prior(prior, size))

    def look(self, latents: Tensor, prior: Tensor, size: Size) -> Tensor:
        """Latents [c, h, w] of a picture of that size, and the prior's token of every patch [S] -> what it says.

        The picture is clean.
        """
        [image] = self.embed([latents])
        start = self.time_embedder(image.new_zeros(1, dtype=torch.float32))
        vector = self.activation(start + self._size(size))  # [1, E]
        return self.keep(image + self._prior(prior, size), self._rope(0, size), vector)

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

    def _rope(self, text: int, size: Size) -> Tensor:
        """The image spreads over both axes from the origin, where all text tokens stand."""
        device = self.text_embedder.weight.device
        return self.placed(text, *(torch.arange(length, device=device) for length in size.patches))
