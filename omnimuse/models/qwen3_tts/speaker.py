"""Whose voice a sound has: the speaker encoder of Qwen3-TTS, ECAPA-TDNN (arXiv 2005.07143), and what it hears.

The arithmetic, and the names of the weights, are those of the published code (`qwen_tts`, `Qwen3TTSSpeakerEncoder`).

Letters: M bands of mel, T frames, n samples, D width of a voice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.components.ecapa import Ecapa, EcapaConfig
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import read_facts

WHERE = "speaker_encoder_config"
WINDOW, HOP, TOP = 1024, 256, 12_000.0
"""Samples of a frame, and between two; the highest frequency, in Hz."""
LEAST = 1e-5
TINY = 1e-9


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
        return super().forward(self._mel(wave))

    def _mel(self, wave: Tensor) -> Tensor:
        """The logarithm of how loud each band is, float32 [M, T]."""
        padded = F.pad(wave.float()[None], ((WINDOW - HOP) // 2,) * 2, mode="reflect")[0]
        hann = torch.hann_window(WINDOW, device=wave.device)
        spectrum = torch.stft(padded, WINDOW, HOP, WINDOW, hann, center=False, return_complex=True)  # [513, T]
        loud = torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + TINY)
        bands = mel_bands(self.config.mel_dim, self.config.sample_rate).to(wave.device)
        return torch.log((bands @ loud).clamp(min=LEAST))


def mel_bands(count: int, rate: int) -> Tensor:
    """How much of each frequency of a frame is in each band, [M, 513]: triangles of equal area, on Slaney's scale."""
    from transformers.audio_utils import mel_filter_bank

    found = mel_filter_bank(WINDOW // 2 + 1, count, 0.0, TOP, rate, norm="slaney", mel_scale="slaney")  # [513, M]
    return torch.from_numpy(found).float().T
