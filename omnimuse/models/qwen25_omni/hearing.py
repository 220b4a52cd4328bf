"""The ears of Qwen2.5-Omni: convolutions over time, then layers that see a chunk, of which two tokens become one.

The arithmetic, and the names of the weights, are those of transformers' `Qwen2_5OmniAudioEncoder`.

Letters: M bands of mel, n frames of the spectrum, S tokens, D width, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.hearing import HearingConfig, HearingTower
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Recording
from omnimuse.pipeline.conversing import whisper


@dataclass(frozen=True)
class ChunkedConfig(HearingConfig):
    """The facts of this one."""

    n_window: int = 100


class Hearing(HearingTower):
    """A tower of this kind."""

    facts: ClassVar[type[HearingConfig]] = ChunkedConfig

    def __init__(self, config: ChunkedConfig) -> None:
        super().__init__(config, key_bias=False)
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, 2, padding=1)
        self.proj = nn.Linear(width, config.output_dim)

    def entered(self, chunks: tuple[Tensor, ...]) -> Iterable[Tensor]:
        for chunk in chunks:
            yield self.told(F.gelu(self.conv2(F.gelu(self.conv1(chunk[None]))))[0].T)  # [n / 2, D]

    def said(self, hidden: Tensor) -> Tensor:
        even = len(hidden) // 2 * 2
        return self.proj(self.ln_post((hidden[0:even:2] + hidden[1:even:2]) / 2))


def spectrum(config: Mapping[str, Any], sound: Recording) -> Tensor:
    """What is heard of a sound: its bands over time, float32 [M, n], as Whisper has them with silence behind it."""
    make, wave = whisper(config, sound)
    if len(wave) > make.n_samples:
        why = f"lasts {sound.seconds:.3g} s; at most {make.n_samples / make.sampling_rate:g} s can be heard: cut it"
        raise RequestError(f"the sound {why}", "sounds")
    silence = torch.zeros(2 * make.n_fft)  # more than a frame sees: what comes behind changes nothing
    padded = torch.cat([torch.from_numpy(wave), silence])[: make.n_samples].numpy()
    made = make(padded, sampling_rate=make.sampling_rate, padding=True, truncation=False, return_tensors="pt")
    return made["input_features"][0][:, : -(-len(wave) // make.hop_length)]
