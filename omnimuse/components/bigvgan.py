"""What makes a waveform of a spectrum: BigVGAN (arXiv 2206.04658), whole or piece by piece.

The arithmetic, and the names of the weights, are those of transformers' `Qwen2_5OmniToken2WavBigVGANModel`. A sample
depends on frames that are near; so a piece is made with `margin` frames more on both sides, which are cut off again,
and is what it would be of the whole.

Letters: M bands, T frames, C channels, n samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.answering_facts import WAVES
from omnimuse.components.speech_codec import Past, Snake
from omnimuse.loader.facts import facts_inside

TAPS, RATIO = 12, 2
"""Of the filter that brings samples to twice as many, and back."""
REACH = 7
"""Samples on each side that one sample depends on through these."""
KERNEL, LEVEL, REFERENCE = 7, -115.0, 20.0
"""Of the first and the last convolution; the lowest loudness and what stands for none, in decibels."""


@dataclass(frozen=True)
class BigVganConfig:
    """Its layers; defaults are those of the published code."""

    mel_dim: int = 80
    upsample_initial_channel: int = 1536
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    upsample_rates: tuple[int, ...] = (5, 3, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 7, 4, 4, 4, 4)

    @property
    def margin(self) -> int:
        """Frames on each side that a sample depends on, at most."""
        reach, rate = float(KERNEL // 2), 1
        kinds = list(zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True))
        widest = max(sum((kernel // 2) * (each + 1) + 2 * REACH for each in many) for kernel, many in kinds)
        for more, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            reach += ceil(kernel / more) / rate
            rate *= more
            reach += widest / rate
        return ceil(reach + (REACH + KERNEL // 2) / rate)


class BigVgan(nn.Module):
    """A spectrum, the logarithm of how loud bands are, [M, T] -> samples [n]: `hop` for every frame."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BigVgan:
        """What the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        return cls(facts_inside(BigVganConfig, config, (WAVES, "bigvgan_config"), {}))

    def __init__(self, config: BigVganConfig) -> None:
        super().__init__()
        self.config, c, width = config, config, config.upsample_initial_channel
        self.hop = 1
        self.conv_pre = nn.Conv1d(c.mel_dim, width, KERNEL, padding=KERNEL // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(c.upsample_rates, c.upsample_kernel_sizes, strict=True):
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2))
            self.hop, width = self.hop * rate, width // 2
            sizes = zip(c.resblock_kernel_sizes, c.resblock_dilation_sizes, strict=True)
            self.resblocks.extend(ResidualBlock(width, *each) for each in sizes)
        self.activation_post = Smooth(width)
        self.conv_post = nn.Conv1d(width, 1, KERNEL, padding=KERNEL // 2, bias=False)

    def forward(self, mel: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """The samples of the frames from `start` to `end`."""
        end = mel.shape[1] if end is None else end
        first = max(0, start - self.config.margin)
        wave = self._whole(mel[:, first : end + self.config.margin])
        return wave[(start - first) * self.hop : (end - first) * self.hop]

    def _whole(self, mel: Tensor) -> Tensor:
        loud = 20 * torch.log10(mel.exp().clamp(min=torch.tensor(LEVEL / 20 * log(10)).exp().item())) - REFERENCE
        hidden = self.conv_pre((2 * ((loud - LEVEL) / -LEVEL) - 1).clamp(-1, 1)[None])
        kinds = len(self.config.resblock_kernel_sizes)
        for level, up in enumerate(self.ups):
            hidden = up(hidden)
            blocks = list(self.resblocks)[level * kinds : (level + 1) * kinds]
            hidden = torch.stack([block(hidden) for block in blocks]).sum(0) / kinds
        return self.conv_post(self.activation_post(hidden))[0, 0].clamp(-1, 1)


class ResidualBlock(nn.Module):
    """Convolutions ever further apart, each between two smooth activations and added to what was there."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            return nn.Conv1d(width, width, kernel, dilation=dilation, padding=kernel // 2 * dilation)

        self.convs1 = nn.ModuleList(conv(dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations = nn.ModuleList(Smooth(width) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        for number, (wide, narrow) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            before, behind = self.activations[2 * number], self.activations[2 * number + 1]
            x = x + narrow(behind(wide(before(x))))
        return x


class Smooth(nn.Module):
    """An activation at twice as many samples, so that what it adds above half of their rate is no tone: [1, C, n]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.act = Snake(width)
        self.register_buffer("filter", sinc_filter(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.filter, Tensor)
        weight, width = self.filter.expand(x.shape[1], -1, -1), x.shape[1]
        more, cut = TAPS // RATIO - 1, (TAPS // RATIO - 1) * RATIO + (TAPS - RATIO) // 2
        x = RATIO * F.conv_transpose1d(F.pad(x, (more, more), "replicate"), weight, stride=RATIO, groups=width)
        x = self.act(x[..., cut:-cut], Past())
        return F.conv1d(F.pad(x, (TAPS // 2 - 1, TAPS // 2), "replicate"), weight, stride=RATIO, groups=width)


def sinc_filter() -> Tensor:
    """What lets half of the frequencies pass: a sinc in Kaiser's window, float32 [1, 1, `TAPS`]."""
    cutoff, half = 0.5 / RATIO, TAPS // 2
    attenuation = 2.285 * (half - 1) * pi * 4 * 0.6 / RATIO + 7.95  # of a transition 0.6 of the rate wide
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else 0.5842 * (attenuation - 21) ** 0.4
    beta += 0.0 if attenuation > 50 else 0.07886 * (attenuation - 21)
    window = torch.kaiser_window(TAPS, beta=beta, periodic=False, dtype=torch.float32)
    found = 2 * cutoff * window * torch.sinc(2 * cutoff * (torch.arange(-half, half) + 0.5))
    return (found / found.sum()).view(1, 1, TAPS)
