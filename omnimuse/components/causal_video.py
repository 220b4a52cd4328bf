"""Parts of the video autoencoders of diffusers that are causal in time, with less work for the same result.

Several families have such an autoencoder, with modules of other names and equal arithmetic. `lighten` changes how
parts of one that diffusers has built compute; weights, names and the cache of the convolutions stay. Results are equal
but for rounding.

Letters: B batch, C channels, t h w frames, height, width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.upsample import upsample

EPS = 1e-24  # under the root: that of `torch.nn.functional.normalize`, squared
PIECE = 2**20
"""Numbers that a norm works on at a time on a CPU: what comes between stays in its cache, and needs little memory."""


def lighten(network: nn.Module, convolution: type, norm: type, upsampling: type) -> None:
    """Let the parts of these classes, of the diffusers module that `network` comes from, compute as ours do.

    An `upsampling` is the first of two parts in sequence; the other is its convolution.
    """
    for part in network.modules():
        # The parts stay what they are, with their weights and names; they only compute in another way.
        if isinstance(part, convolution):
            part.__class__ = CausalConv3d
        elif isinstance(part, norm) and part.channel_first and not isinstance(part.bias, Tensor):
            part.__class__ = ChannelNorm
        elif isinstance(part, nn.Sequential) and isinstance(part[0], upsampling):
            part.__class__ = Upsample


def encode_picture(network: Any, pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] -> moments [B, 2C, h, w], by an autoencoder that takes a picture for one frame.

    Nothing is remembered between frames where there is one: what mixes frames in time is not even computed.
    """
    return network.quant_conv(network.encoder(pixels[:, :, None]))[:, :, 0]


def decode_picture(network: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w], as `network` makes them -> pixels [B, 3, H, W], mostly in [-1, 1]."""
    return network.decoder(network.post_quant_conv(latents[:, :, None]))[:, :, 0]


class CausalConv3d(nn.Conv3d):
    """A convolution over frames, rows and columns that sees no later frame; frames before the first are zeros.

    Of the first frames of a video, which come one at a time, the kernel's earlier taps would meet only zeros: they are
    left out, and what is left of one tap is a convolution of pictures.
    """

    _padding: tuple[int, ...]  # both sides of columns and rows, then before and after the frames

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """[B, C, t, h, w] and the frames before them that the last call left -> frames, rows and columns by strides."""
        missing = self._padding[4]
        if cache_x is not None and missing:
            x = torch.cat([cache_x.to(x.device), x], dim=2)
            missing -= cache_x.shape[2]
        weight, rows_columns = self.weight, (self._padding[2], self._padding[0])
        if missing and x.shape[2] + missing == weight.shape[2]:
            weight = weight[:, :, missing:]
        elif missing:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        if x.shape[2] == weight.shape[2] == 1:
            return F.conv2d(x[:, :, 0], weight[:, :, 0], self.bias, self.stride[1:], rows_columns)[:, :, None]
        return F.conv3d(x, weight, self.bias, self.stride, (0, *rows_columns))


class ChannelNorm(nn.Module):
    """x / rms(x) * gamma over the channels of every pixel; computed in float32 and rounded once."""

    gamma: Tensor  # [C, 1, 1] or [C, 1, 1, 1]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *] -> like it, contiguous."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        channels = x.shape[1]
        weight = self.gamma.float().view(channels, 1) * channels**0.5
        pixels = PIECE // channels if x.device.type == "cpu" else x[0, 0].numel()
        for part, place in zip(x.flatten(2).split(pixels, -1), out.flatten(2).split(pixels, -1), strict=True):
            exact = part.float()  # [B, C, pixels]
            inverse = exact.square().sum(1, keepdim=True).clamp_min(EPS).rsqrt()  # [B, 1, pixels]
            place.copy_((exact * inverse).mul_(weight))
        return out


class Upsample(nn.Sequential):
    """Twice the height and width of pictures [B, C, h, w], then a convolution, in one."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample(x, cast(nn.Conv2d, self[1]))
