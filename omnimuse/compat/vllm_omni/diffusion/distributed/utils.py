"""`vllm_omni.diffusion.distributed.utils`."""

from __future__ import annotations

from typing import Any

import torch

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import here


def get_local_device() -> torch.device:
    """The device that this engine computes on."""
    return here("get_local_device").device


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
