"""The ears of Qwen3-Omni: convolutions over time and bands, then layers that see windows of several chunks.

The arithmetic, and the names of the weights, are those of transformers' `Qwen3OmniMoeAudioEncoder`.

Letters: M bands of mel, C chunks, F frames of a chunk, S tokens, D width, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.hearing import HearingConfig, HearingTower
from omnimuse.core.errors import ModelError

CHUNK = 100
STRIDES = 3
"""Convolutions, each of which halves the frames and the bands."""


@dataclass(frozen=True)
class WindowedConfig(HearingConfig):
    """The facts of this one."""

    n_window_infer: int = 800
    downsample_hidden_size: int = 480

    def __post_init__(self) -> None:
        if self.chunk != CHUNK:
            raise ModelError(
                f"config.json, audio_config: n_window={self.n_window} is not supported; only {CHUNK // 2} is"
            )

    @property
    def window(self) -> int:
        return halved(self.chunk) * (self.n_window_infer // self.chunk)


def halved(count: int) -> int:
    """What the convolutions leave of so many."""
    for _ in range(STRIDES):
        count = -(-count // 2)
    return count


class Hearing(HearingTower):
    """A tower of this kind."""

    facts: ClassVar[type[HearingConfig]] = WindowedConfig

    def __init__(self, config: WindowedConfig) -> None:
        super().__init__(config, key_bias=True)
        width, narrow = config.d_model, config.downsample_hidden_size
        self.conv2d1 = nn.Conv2d(1, narrow, 3, 2, padding=1)
        self.conv2d2 = nn.Conv2d(narrow, narrow, 3, 2, padding=1)
        self.conv2d3 = nn.Conv2d(narrow, narrow, 3, 2, padding=1)
        self.conv_out = nn.Linear(narrow * halved(config.num_mel_bins), width, bias=False)
        self.proj1, self.proj2 = nn.Linear(width, width), nn.Linear(width, config.output_dim)

    def entered(self, chunks: tuple[Tensor, ...]) -> Iterable[Tensor]:
        lengths, longest = [chunk.shape[1] for chunk in chunks], chunks[0].shape[1]
        x = torch.stack([F.pad(chunk, (0, longest - chunk.shape[1])) for chunk in chunks])[:, None]  # [C, 1, M, F]
        for conv in (self.conv2d1, self.conv2d2, self.conv2d3):
            x = F.gelu(conv(x))
        x = self.told(self.conv_out(x.permute(0, 3, 1, 2).flatten(2)))  # [C, F / 8, D]
        return (chunk[: halved(length)] for chunk, length in zip(x, lengths, strict=True))

    def said(self, hidden: Tensor) -> Tensor:
        return self.proj2(F.gelu(self.proj1(self.ln_post(hidden))))
