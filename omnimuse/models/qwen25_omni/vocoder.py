"""What makes a waveform of a spectrum in Qwen2.5-Omni: BigVGAN, as the checkpoint's config.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.components.bigvgan import BigVgan, BigVganConfig
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen25_omni.facts import IGNORED, WAVES


class Vocoder(BigVgan):
    """A spectrum to samples."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Vocoder:
        """What the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        given = known_of(part(part(config, WAVES), "bigvgan_config"), BigVganConfig, ())
        return cls(read_facts(BigVganConfig, given, f"config.json, {WAVES}, bigvgan_config", {}, IGNORED))
