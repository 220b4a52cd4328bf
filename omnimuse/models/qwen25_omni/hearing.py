"""The ears of Qwen2.5-Omni: the spectrum of a sound becomes what stands for it among the thinker's tokens.

The arithmetic, and the names of the weights, are those of transformers' `Qwen2_5OmniAudioEncoder`. Sounds are heard one
by one, in chunks each of which is apart from the others.

Letters: M bands of mel, n frames of the spectrum, S tokens, D width, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.hearing import HearingLayer, places_of
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Recording
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen25_omni.facts import IGNORED, THINKER
from omnimuse.pipeline.conversing import whisper

WHERE = f"config.json, {THINKER}, audio_config"


@dataclass(frozen=True)
class HearingConfig:
    """The facts in that part of config.json; defaults are those of the published code."""

    num_mel_bins: int = 128
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    d_model: int = 1280
    n_window: int = 100
    output_dim: int = 3584


class Hearing(nn.Module):
    """The spectrum of a sound, [M, n], -> what stands for it, [S, E]."""

    def __init__(self, config: HearingConfig) -> None:
        super().__init__()
        self.config, c = config, config
        self.conv1 = nn.Conv1d(c.num_mel_bins, c.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(c.d_model, c.d_model, 3, 2, padding=1)
        sizes = c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim
        self.layers = nn.ModuleList(HearingLayer(*sizes, key_bias=False) for _ in range(c.encoder_layers))
        self.ln_post = nn.LayerNorm(c.d_model)
        self.proj = nn.Linear(c.d_model, c.output_dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Hearing:
        """The tower that the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        fixed = {"activation_function": ("gelu",), "scale_embedding": (False,)}
        given = known_of(part(part(config, THINKER), "audio_config"), HearingConfig, fixed)
        return cls(read_facts(HearingConfig, given, WHERE, fixed, IGNORED))

    def forward(self, spectrum: Tensor) -> Tensor:
        found, window = [], self.config.n_window
        for chunk in spectrum.to(self.conv1.weight.dtype).split(2 * window, dim=1):
            heard = F.gelu(self.conv2(F.gelu(self.conv1(chunk[None]))))[0].T  # [n / 2, D]
            found.append(heard + places_of(len(heard), self.config.d_model, heard.device).to(heard.dtype))
        hidden = torch.cat(found)
        for layer in self.layers:
            hidden = layer(hidden, window)
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
