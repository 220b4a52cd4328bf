"""Whose voice a sound has: the speaker encoder of Qwen3-TTS, ECAPA-TDNN (arXiv 2005.07143).

The arithmetic, and the names of the weights, are those of the published code (`qwen_tts`, `Qwen3TTSSpeakerEncoder`).

Letters: n samples, D width of a voice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omnimuse.components.ecapa import Ecapa, EcapaConfig
from omnimuse.components.mel import log_mel
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import read_facts

WHERE = "speaker_encoder_config"


@dataclass(frozen=True)
class SpeakerConfig(EcapaConfig):
    """The facts in that part of config.json; defaults are those of the published code."""

    sample_rate: int = 24_000

    @staticmethod
    def of(config: Mapping[str, Any]) -> SpeakerConfig:
        """Those of a checkpoint; ModelError for an encoder that cannot be."""
        found = read_facts(SpeakerConfig, config.get(WHERE) or {}, f"config.json, {WHERE}", {}, IGNORED)
        if not found.fits:
            raise ModelError(f"config.json, {WHERE}: channels, kernel sizes and dilations are not as many")
        return found


IGNORED = ("dtype", "torch_dtype", "model_type", "transformers_version", "architectures")


class SpeakerEncoder(Ecapa):
    """A waveform [n] -> the voice that it has, [D]."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__(config)
        self.config = config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SpeakerEncoder:
        return cls(SpeakerConfig.of(config))

    def forward(self, wave: Tensor) -> Tensor:
        return super().forward(log_mel(wave, self.config.mel_dim, self.config.sample_rate))
