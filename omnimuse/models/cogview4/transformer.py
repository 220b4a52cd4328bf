"""The CogView4 transformer: text and image attend together, with the same weights and modulations of their own.

The arithmetic is that of diffusers' `CogView4Transformer2DModel`; the blocks are those of `components/joint_stream.py`.
What does not depend on the step, the projected text, what is told of the size and the rotary table, is computed once
per request by `CogView4Transformer.prepare`.

Letters: S tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.components.joint_stream import JointConfig, JointNetwork, JointStatic
from omnimuse.components.two_streams import PATCH
from omnimuse.loader.facts import read_facts


@dataclass(frozen=True)
class CogView4Config(JointConfig):
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 6B model."""

    rope_axes_dim: tuple[int, int] = (256, 256)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> CogView4Config:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        fixed = {"patch_size": (PATCH,), "out_channels": (config.get("in_channels", cls.in_channels),)}
        return read_facts(cls, config, "transformer/config.json", fixed, {"pos_embed_max_size", "sample_size"})


class CogView4Transformer(JointNetwork[JointStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row; times run from 1000 (noise) to 1."""

    def __init__(self, config: CogView4Config) -> None:
        super().__init__(config, waves=config.dim, numbers=6)
        self.config = config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CogView4Transformer:
        return cls(CogView4Config.from_dict(config))

    def prepare(self, features: Tensor, height: int, width: int, told: Sequence[float]) -> JointStatic:
        """Text features [S, text_embed_dim], the size of the latents, and the six numbers that are told of the picture:
        its height and width before it was scaled, where it was cut from that, its height and width -> what all steps
        share.
        """
        text = self.text_embedder(features.to(self.text_embedder.weight))  # [S_text, D]
        sides = zip((height // PATCH, width // PATCH), self.config.rope_axes_dim, strict=True)
        # However many patches a side has, they spread over the same positions.
        places = (torch.arange(count, device=text.device) * all_places // count for count, all_places in sides)
        return JointStatic(text, self.placed(len(text), *places), self.told(told))
