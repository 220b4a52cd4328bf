"""`vllm_omni.diffusion.distributed.utils`."""

from __future__ import annotations

import torch

from omnimuse.compat.contract.surroundings import here


def get_local_device() -> torch.device:
    """The device that this engine computes on."""
    return here("get_local_device").device
