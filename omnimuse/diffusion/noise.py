"""Noise from a state's own generator, and from nowhere else. Called by the stages that make initial latents.

The draw is always float32 on the CPU and then moved, so that a seed gives the same noise on every device, in
every dtype, batch and number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnimuse.core.errors import ConfigError


def generator(seed: int, index: int = 0) -> torch.Generator:
    """The generator of one output: output i of a request draws what a request with seed + i would draw."""
    return torch.Generator("cpu").manual_seed(seed + index)


def draw(
    shape: Sequence[int],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of `shape`; advances `generator`, which must live on the CPU (ConfigError)."""
    if generator.device.type != "cpu":
        raise ConfigError(f"the noise generator is on {generator.device}; make it on the CPU, the noise is moved later")
    noise = torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
    return noise.to(device=device, dtype=dtype)
