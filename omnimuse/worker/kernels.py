"""Which kernels compute what stands between products and attention, and why (`layers/kernels.py`).

Used by a build pass; `explain` prints the choice. Fused ones need Triton and a device that it compiles for.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError
from omnimuse.layers.kernels import Kernels, Part, Plain

OLDEST = (8, 0)


def choose_kernels(config: Config, device: torch.device) -> tuple[Kernels, Choice]:
    """The kernels for `device`; ConfigError if those that were asked for cannot run there."""
    mode = config.kernels.mode
    if mode == "plain":
        return Plain(), _choice("plain", "asked for: torch's operations, one after the other")
    why = obstacle(config, device)
    if why is not None:
        if mode == "triton":
            raise ConfigError(f"kernels=triton cannot be: {why}; use kernels=plain or kernels=auto")
        return Plain(), _choice("plain", f"default, not triton: {why}")
    from omnimuse.layers.fused import Fused

    how = "norms with what scales, turns or adds them read and write each number once"
    return Fused(), _choice("triton", f"{'asked for' if mode == 'triton' else f'default on {device.type}'}: {how}")


def obstacle(config: Config, device: torch.device) -> str | None:
    """Why fused kernels cannot compute on `device`, or None."""
    if device.type != "cuda":
        return f"Triton compiles for CUDA, and this computes on {device}"
    if config.compile.mode != "none":
        return "compiled blocks are fused by the compiler, which sees torch's operations only"
    if find_spec("triton") is None:
        return "the package triton is not installed (torch for CUDA brings it; else `pip install triton`)"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"Triton needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or newer"
    return None


def give_kernels(module: nn.Module, kernels: Kernels) -> int:
    """Let every part of `module` compute by `kernels`; how many there are."""
    parts = [part for part in module.modules() if isinstance(part, Part)]
    for part in parts:
        part.kernels = kernels
    return len(parts)


def _choice(value: str, reason: str) -> Choice:
    return Choice("place", "kernels", value, reason)
