"""Whose voice a sound has: ECAPA-TDNN (arXiv 2005.07143), from bands of mel to a vector.

The names of the weights are those of the published code of models that speak.

Letters: M bands of mel, C channels, T frames, D width of a voice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = 1e-12


@dataclass(frozen=True)
class EcapaConfig:
    """Its layers; defaults are those of the published code."""

    mel_dim: int = 128
    enc_dim: int = 1024
    enc_channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 128
    enc_res2net_scale: int = 8
    enc_se_channels: int = 128

    @property
    def fits(self) -> bool:
        """Whether every layer has all that it needs."""
        return len(self.enc_channels) == len(self.enc_kernel_sizes) == len(self.enc_dilations)


class Ecapa(nn.Module):
    """Bands of mel [M, T] -> a voice [D]."""

    def __init__(self, config: EcapaConfig) -> None:
        super().__init__()
        wide, layers = config.enc_channels, list(zip(config.enc_kernel_sizes, config.enc_dilations, strict=True))
        inner = zip(wide, wide[1:-1], layers[1:-1], strict=False)
        squeezed = [SqueezedBlock(config, into, out, *layer) for into, out, layer in inner]
        self.blocks = nn.ModuleList([Delay(config.mel_dim, wide[0], *layers[0]), *squeezed])
        self.mfa = Delay(wide[-1], wide[-1], *layers[-1])
        self.asp = Pooling(wide[-1], config.enc_attention_channels)
        self.fc = nn.Conv1d(2 * wide[-1], config.enc_dim, 1)

    def forward(self, mel: Tensor) -> Tensor:
        hidden = mel.to(self.fc.weight.dtype)[None]  # [1, M, T]
        found = []
        for block in self.blocks:
            hidden = block(hidden)
            found.append(hidden)
        return self.fc(self.asp(self.mfa(torch.cat(found[1:], dim=1))))[0, :, 0]


class Delay(nn.Module):
    """A convolution over frames, then ReLU: [1, C, T] -> [1, C', T]."""

    def __init__(self, width: int, out: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, out, kernel, dilation=dilation, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class Parts(nn.Module):
    """Channels in parts, each of which but the first sees what the one before it has become."""

    def __init__(self, width: int, parts: int, kernel: int, dilation: int) -> None:
        super().__init__()
        each = width // parts
        self.blocks = nn.ModuleList(Delay(each, each, kernel, dilation) for _ in range(parts - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second, *others = x.chunk(len(self.blocks) + 1, dim=1)
        found = [first, self.blocks[0](second)]
        for block, part in zip(list(self.blocks)[1:], others, strict=True):
            found.append(block(part + found[-1]))
        return torch.cat(found, dim=1)


class Squeeze(nn.Module):
    """Every channel times a number that all channels, over all frames, decide."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(width, narrow, 1), nn.Conv1d(narrow, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(F.relu(self.conv1(x.mean(dim=2, keepdim=True)))).sigmoid()


class SqueezedBlock(nn.Module):
    """A layer, one in parts, a layer, the squeeze: added to what was there."""

    def __init__(self, config: EcapaConfig, width: int, out: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1, self.tdnn2 = Delay(width, out, 1, 1), Delay(out, out, 1, 1)
        self.res2net_block = Parts(out, config.enc_res2net_scale, kernel, dilation)
        self.se_block = Squeeze(out, config.enc_se_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class Pooling(nn.Module):
    """Means and deviations of every channel over frames, those that matter more: [1, C, T] -> [1, 2 C, 1]."""

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.tdnn = Delay(3 * width, attention, 1, 1)
        self.conv = nn.Conv1d(attention, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        even = torch.full_like(x[:, :1], 1 / x.shape[2])
        told = [each.expand_as(x) for each in _statistics(x, even)]
        weights = self.conv(self.tdnn(torch.cat([x, *told], dim=1)).tanh()).softmax(dim=2)
        return torch.cat(_statistics(x, weights), dim=1)


def _statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weights * x).sum(2, keepdim=True)
    return mean, (weights * (x - mean).square()).sum(2, keepdim=True).clamp(NARROW).sqrt()
