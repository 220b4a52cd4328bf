"""`vllm_omni.model_executor.layers.timestep_embedding`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_name


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """[B] -> [B, dim] in float32: cosines, then sines, of frequencies that fall from 1 to 1 / max_period."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    found = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(found, (0, dim % 2))


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
