"""Oobleck, the autoencoder of sound: a waveform becomes latents, and latents a waveform, by convolutions in time.

The arithmetic, and the names of the weights, are those of diffusers' `AutoencoderOobleck`. Its decoder is local:
`margin` says how far a latent reaches, so that a long sound can be decoded piece by piece and is the same. Normed
weights are computed when they are used, and not kept.

Letters: B sounds, C channels, n samples, L latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import read_facts

DILATIONS = (1, 3, 9)
KERNEL = 7


@dataclass(frozen=True)
class OobleckConfig:
    """The facts in the checkpoint's vae/config.json; defaults are those of the published checkpoint."""

    encoder_hidden_size: int = 128
    downsampling_ratios: tuple[int, ...] = (2, 4, 4, 8, 8)
    channel_multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    decoder_channels: int = 128
    decoder_input_channels: int = 64
    audio_channels: int = 2
    sampling_rate: int = 44_100

    def __post_init__(self) -> None:
        if len(self.downsampling_ratios) != len(self.channel_multiples):
            raise ModelError(
                f"vae/config.json: {len(self.downsampling_ratios)} downsampling_ratios and "
                f"{len(self.channel_multiples)} channel_multiples; each level has one of both"
            )

    @property
    def hop(self) -> int:
        """Samples of one latent."""
        return prod(self.downsampling_ratios)


class Oobleck(nn.Module):
    """Waveforms [B, C, n] in [-1, 1] to latents and back."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Oobleck:
        """The autoencoder that config.json describes; ModelError for one that it cannot be."""
        return cls(read_facts(OobleckConfig, config, "vae/config.json", {}))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.decoder.conv1.weight_v.dtype

    @property
    def margin(self) -> int | None:
        """How many latents before and after a latent have a part in its samples; None where pieces cannot be joined,
        as an odd ratio makes the whole shorter than its pieces.
        """
        if any(ratio % 2 for ratio in self.config.downsampling_ratios):
            return None
        reach = KERNEL // 2
        for ratio in self.config.downsampling_ratios:  # from the sound inwards
            reach = (reach + sum(DILATIONS) * (KERNEL // 2)) // ratio + 2
        return reach + KERNEL // 2

    def encode(self, sound: Tensor) -> Tensor:
        """[B, C, n] -> moments [B, 2 latent channels, L]: means, then what `deviations` are made of."""
        return self.encoder(sound)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, latent channels, L] -> [B, C, n]."""
        return self.decoder(latents)


def deviations(scales: Tensor) -> Tensor:
    """The standard deviations of latents, from the second half of their moments."""
    return F.softplus(scales) + 1e-4


class Encoder(nn.Module):
    """A convolution, a level for each ratio, and a convolution to the moments."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        width = config.encoder_hidden_size
        widths = [width * multiple for multiple in (1, *config.channel_multiples)]
        self.conv1 = NormedConv(config.audio_channels, width, KERNEL)
        self.block = nn.ModuleList(
            Down(widths[level], widths[level + 1], ratio) for level, ratio in enumerate(config.downsampling_ratios)
        )
        self.snake1 = Snake(widths[-1])
        self.conv2 = NormedConv(widths[-1], width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for level in self.block:
            x = level(x)
        return self.conv2(self.snake1(x))


class Decoder(nn.Module):
    """A convolution, a level for each ratio from the last to the first, and a convolution to the sound."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        width = config.decoder_channels
        widths = [width * multiple for multiple in (1, *config.channel_multiples)]
        self.conv1 = NormedConv(config.decoder_input_channels, widths[-1], KERNEL)
        levels = reversed(list(enumerate(config.downsampling_ratios)))
        self.block = nn.ModuleList(Up(widths[level + 1], widths[level], ratio) for level, ratio in levels)
        self.snake1 = Snake(width)
        self.conv2 = NormedConv(width, config.audio_channels, KERNEL, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for level in self.block:
            x = level(x)
        return self.conv2(self.snake1(x))


class Down(nn.Module):
    """Three residual units, and a convolution that makes one step of `ratio`."""

    def __init__(self, width: int, out: int, ratio: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (Residual(width, dilation) for dilation in DILATIONS)
        self.snake1 = Snake(width)
        self.conv1 = NormedConv(width, out, 2 * ratio, stride=ratio, padding=ceil(ratio / 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.snake1(self.res_unit3(self.res_unit2(self.res_unit1(x)))))


class Up(nn.Module):
    """A convolution that makes `ratio` steps of one, and three residual units."""

    def __init__(self, width: int, out: int, ratio: int) -> None:
        super().__init__()
        self.snake1 = Snake(width)
        self.conv_t1 = NormedUp(width, out, ratio)
        self.res_unit1, self.res_unit2, self.res_unit3 = (Residual(out, dilation) for dilation in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_unit3(self.res_unit2(self.res_unit1(self.conv_t1(self.snake1(x)))))


class Residual(nn.Module):
    """x + two convolutions of it, the first of which looks far."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(width)
        self.conv1 = NormedConv(width, width, KERNEL, dilation=dilation, padding=dilation * (KERNEL // 2))
        self.snake2 = Snake(width)
        self.conv2 = NormedConv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class Snake(nn.Module):
    """x + sin(a x)^2 / b, with a and b stored as logarithms (arXiv 2006.08195)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, width, 1))
        self.beta = nn.Parameter(torch.zeros(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.beta.exp() + 1e-9).reciprocal() * torch.sin(self.alpha.exp() * x).pow(2)


class NormedConv(nn.Module):
    """A convolution whose weight is a direction and a length: g v / |v|, for every first index (arXiv 1602.07868)."""

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.padding = kernel // 2 if padding is None else padding
        self.weight_g = nn.Parameter(torch.ones(out, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(out, width, kernel))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class NormedUp(nn.Module):
    """The same for a convolution that makes `ratio` samples of one."""

    def __init__(self, width: int, out: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.weight_g = nn.Parameter(torch.ones(width, 1, 1))
        self.weight_v = nn.Parameter(torch.ones(width, out, 2 * ratio))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return F.conv_transpose1d(x, weight, self.bias, self.ratio, ceil(self.ratio / 2))
