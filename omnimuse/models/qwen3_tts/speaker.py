"""Whose voice a sound has: the speaker encoder of Qwen3-TTS, ECAPA-TDNN (arXiv 2005.07143), and what it hears.

The arithmetic, and the names of the weights, are those of the published code (`qwen_tts`, `Qwen3TTSSpeakerEncoder`).

Letters: M bands of mel, C channels, T frames, n samples, D width of a voice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import read_facts

WHERE = "speaker_encoder_config"
WINDOW, HOP, TOP = 1024, 256, 12_000.0
"""Samples of a frame, and between two; the highest frequency, in Hz."""
LEAST = 1e-5
TINY, NARROW = 1e-9, 1e-12


@dataclass(frozen=True)
class SpeakerConfig:
    """The facts in that part of config.json; defaults are those of the published code."""

    mel_dim: int = 128
    enc_dim: int = 1024
    enc_channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 128
    enc_res2net_scale: int = 8
    enc_se_channels: int = 128
    sample_rate: int = 24_000

    @staticmethod
    def of(config: Mapping[str, Any]) -> SpeakerConfig:
        """Those of a checkpoint; ModelError for an encoder that cannot be."""
        found = read_facts(SpeakerConfig, config.get(WHERE) or {}, f"config.json, {WHERE}", {}, IGNORED)
        if not len(found.enc_channels) == len(found.enc_kernel_sizes) == len(found.enc_dilations):
            raise ModelError(f"config.json, {WHERE}: channels, kernel sizes and dilations are not as many")
        return found


IGNORED = ("dtype", "torch_dtype", "model_type", "transformers_version", "architectures")


class SpeakerEncoder(nn.Module):
    """A waveform [n] -> the voice that it has, [D]."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        wide, layers = config.enc_channels, list(zip(config.enc_kernel_sizes, config.enc_dilations, strict=True))
        inner = zip(wide, wide[1:-1], layers[1:-1], strict=False)
        squeezed = [SqueezedBlock(config, into, out, *layer) for into, out, layer in inner]
        self.blocks = nn.ModuleList([Delay(config.mel_dim, wide[0], *layers[0]), *squeezed])
        self.mfa = Delay(wide[-1], wide[-1], *layers[-1])
        self.asp = Pooling(wide[-1], config.enc_attention_channels)
        self.fc = nn.Conv1d(2 * wide[-1], config.enc_dim, 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SpeakerEncoder:
        return cls(SpeakerConfig.of(config))

    def forward(self, wave: Tensor) -> Tensor:
        hidden = self._mel(wave).to(self.fc.weight.dtype)[None]  # [1, M, T]
        found = []
        for block in self.blocks:
            hidden = block(hidden)
            found.append(hidden)
        return self.fc(self.asp(self.mfa(torch.cat(found[1:], dim=1))))[0, :, 0]

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

    def __init__(self, config: SpeakerConfig, width: int, out: int, kernel: int, dilation: int) -> None:
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
