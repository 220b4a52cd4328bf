"""How loud the bands of a sound are over time, on the scale on which people hear: what networks are told of a sound.

Letters: M bands of mel, T frames, n samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, HOP, TOP = 1024, 256, 12_000.0
"""Samples of a frame, and between two; the highest frequency, in Hz."""
LEAST = 1e-5
TINY = 1e-9


def log_mel(wave: Tensor, bands: int, rate: int) -> Tensor:
    """The logarithm of how loud each of so many bands of a waveform [n] is, float32 [M, T]."""
    padded = F.pad(wave.float()[None], ((WINDOW - HOP) // 2,) * 2, mode="reflect")[0]
    hann = torch.hann_window(WINDOW, device=wave.device)
    spectrum = torch.stft(padded, WINDOW, HOP, WINDOW, hann, center=False, return_complex=True)  # [513, T]
    loud = torch.sqrt(torch.view_as_real(spectrum).square().sum(-1) + TINY)
    return torch.log((mel_bands(bands, rate).to(wave.device) @ loud).clamp(min=LEAST))


def mel_bands(count: int, rate: int) -> Tensor:
    """How much of each frequency of a frame is in each band, [M, 513]: triangles of equal area, on Slaney's scale."""
    from transformers.audio_utils import mel_filter_bank

    found = mel_filter_bank(WINDOW // 2 + 1, count, 0.0, TOP, rate, norm="slaney", mel_scale="slaney")  # [513, M]
    return torch.from_numpy(found).float().T
