"""The little network between the prompt and the transformer: it projects text features, and embeds two moments.

The arithmetic, and the names of the weights, are those of diffusers' `StableAudioProjectionModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.loader.facts import read_facts

FREQUENCIES = 128


@dataclass(frozen=True)
class ProjectionConfig:
    """The facts in the checkpoint's projection_model/config.json; moments are seconds from `min_value` to
    `max_value`.
    """

    text_encoder_dim: int
    conditioning_dim: int
    min_value: float
    max_value: float


class Projection(nn.Module):
    """Text features and moments, all of one width C."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__()
        self.config = config
        text, width = config.text_encoder_dim, config.conditioning_dim
        self.text_projection = nn.Identity() if text == width else nn.Linear(text, width)
        self.start_number_conditioner = Moment(width)
        self.end_number_conditioner = Moment(width)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Projection:
        """The network that config.json describes; ModelError for one that it cannot be."""
        return cls(read_facts(ProjectionConfig, config, "projection_model/config.json", {}))

    def forward(self, features: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        """Text and duration [L + 2, C], and the duration alone [2 C], of a sound from second `start` to `end`.

        `features` [L, D] are those of tokens, and zeros for pads, which stay zeros.
        """
        dtype, low, high = self.start_number_conditioner.dtype, self.config.min_value, self.config.max_value
        times = torch.tensor([start, end], dtype=torch.float32, device=features.device).clamp(low, high)
        shares = (times - low) / (high - low)
        first, last = self.start_number_conditioner(shares[:1]), self.end_number_conditioner(shares[1:])  # [1, C]
        present = (features != 0).any(dim=-1, keepdim=True)  # [L, 1]
        text = self.text_projection(features.to(dtype)).masked_fill(~present, 0.0)
        return torch.cat([text, first, last]), torch.cat([first, last], dim=-1)[0]


class Moment(nn.Module):
    """A number from 0 to 1, and its waves at learned frequencies, through a linear layer: [B] -> [B, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_positional_embedding = nn.Sequential(Waves(), nn.Linear(2 * FREQUENCIES + 1, width))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.parameters()).dtype

    def forward(self, share: Tensor) -> Tensor:
        return self.time_positional_embedding(share.to(self.dtype))


class Waves(nn.Module):
    """[B] -> [B, 1 + 2 frequencies]: the number itself, sines, cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(FREQUENCIES))

    def forward(self, times: Tensor) -> Tensor:
        times = times[..., None]
        angles = times * self.weights[None] * 2 * pi
        return torch.cat((times, angles.sin(), angles.cos()), dim=-1)
