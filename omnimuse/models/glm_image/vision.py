"""What GLM-Image's language model makes of a picture that is shown: a vision tower, then the nearest code per patch.

The arithmetic is that of transformers' `GlmImageVisionModel` and the encoding half of its `GlmImageVQVAE`. Pictures
are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.components.picture_codes import Codebook, CodebookConfig, StretchedTower, TowerConfig
from omnimuse.loader.facts import read_facts

WHERE = "vision_language_encoder/config.json"
IGNORED = ("initializer_range", "attention_dropout", "dtype", "torch_dtype", "transformers_version")


def tower_of(config: Mapping[str, Any]) -> StretchedTower:
    """The tower that the part `vision_config` of config.json describes."""
    fixed = {"model_type": ("glm_image_vision",), "hidden_act": ("gelu",), "spatial_merge_size": (1,)}
    return StretchedTower(read_facts(TowerConfig, config, WHERE, fixed, IGNORED))


def codebook_of(config: Mapping[str, Any]) -> Codebook:
    """The codebook that the part `vq_config` of config.json describes."""
    fixed = {"model_type": ("glm_image_vqmodel",), "in_channels": (3,)}
    return Codebook(read_facts(CodebookConfig, config, WHERE, fixed, IGNORED))
