"""The ears of Qwen3-Omni: the spectrum of a sound becomes what stands for it among the thinker's tokens.

The arithmetic, and the names of the weights, are those of transformers' `Qwen3OmniMoeAudioEncoder`. Sounds are heard
one by one, in chunks that the convolutions see apart, and windows of several chunks within which all see all.

Letters: M bands of mel, n frames of the spectrum, C chunks, F frames of a chunk, S tokens, D width, N heads,
H head dim, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.hearing import HearingLayer, places_of
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen3_omni.facts import IGNORED, THINKER

WHERE = f"config.json, {THINKER}, audio_config"
STRIDES = 3
"""Convolutions, each of which halves the frames and the bands."""


@dataclass(frozen=True)
class HearingConfig:
    """The facts in that part of config.json; defaults are those of the published code."""

    num_mel_bins: int = 128
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    d_model: int = 1280
    n_window: int = 50
    n_window_infer: int = 800
    output_dim: int = 3584
    downsample_hidden_size: int = 480

    @property
    def chunk(self) -> int:
        """Frames of a chunk."""
        return 2 * self.n_window

    def tokens(self, frames: int) -> int:
        """How many tokens stand for so many frames."""
        whole, rest = divmod(frames, self.chunk)
        return whole * halved(self.chunk) + halved(rest)


def halved(count: int) -> int:
    """What the convolutions leave of so many."""
    for _ in range(STRIDES):
        count = -(-count // 2)
    return count


class Hearing(nn.Module):
    """The spectrum of a sound, [M, n], -> what stands for it, [S, E]."""

    def __init__(self, config: HearingConfig) -> None:
        super().__init__()
        self.config, c, narrow = config, config, config.downsample_hidden_size
        self.conv2d1 = nn.Conv2d(1, narrow, 3, 2, padding=1)
        self.conv2d2 = nn.Conv2d(narrow, narrow, 3, 2, padding=1)
        self.conv2d3 = nn.Conv2d(narrow, narrow, 3, 2, padding=1)
        self.conv_out = nn.Linear(narrow * halved(c.num_mel_bins), c.d_model, bias=False)
        self.layers = nn.ModuleList(
            HearingLayer(c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim) for _ in range(c.encoder_layers)
        )
        self.ln_post = nn.LayerNorm(c.d_model)
        self.proj1 = nn.Linear(c.d_model, c.d_model)
        self.proj2 = nn.Linear(c.d_model, c.output_dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Hearing:
        """The tower that the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        fixed = {"activation_function": ("gelu",), "scale_embedding": (False,)}
        given = known_of(part(part(config, THINKER), "audio_config"), HearingConfig, fixed)
        found = read_facts(HearingConfig, given, WHERE, fixed, IGNORED)
        if found.chunk != 100:
            raise ModelError(f"{WHERE}: n_window={found.n_window} is not supported; only 50 is")
        return cls(found)

    def forward(self, spectrum: Tensor) -> Tensor:
        c, weight = self.config, self.conv2d1.weight
        chunks = spectrum.to(weight.dtype).split(c.chunk, dim=1)
        lengths, longest = [chunk.shape[1] for chunk in chunks], chunks[0].shape[1]
        x = torch.stack([F.pad(chunk, (0, longest - chunk.shape[1])) for chunk in chunks])[:, None]  # [C, 1, M, F]
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = F.gelu(conv(x))
        x = self.conv_out(x.permute(0, 3, 1, 2).flatten(2))  # [C, F / 8, D]
        x = x + places_of(x.shape[1], c.d_model, x.device).to(x.dtype)
        hidden = torch.cat([chunk[: halved(length)] for chunk, length in zip(x, lengths, strict=True)])  # [S, D]
        window = x.shape[1] * (c.n_window_infer // c.chunk)
        for layer in self.layers:
            hidden = layer(hidden, window)
        return self.proj2(F.gelu(self.proj1(self.ln_post(hidden))))
