"""Numbers to compute with, the same in every run."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(seed: int, *shape: int) -> Tensor:
    """Normally distributed ones of this shape, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
