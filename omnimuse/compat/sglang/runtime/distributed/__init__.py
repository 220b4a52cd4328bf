"""`sglang.multimodal_gen.runtime.distributed`: the device, and the ranks that share the work."""

from __future__ import annotations

from typing import Any

import torch

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.contract.surroundings import axis, here


def get_local_torch_device() -> torch.device:
    """The engine's device."""
    return here("get_local_torch_device").device


def get_sp_world_size() -> int:
    """How many ranks share the tokens of a row."""
    return axis("ulysses", "get_sp_world_size").size * axis("ring", "get_sp_world_size").size


def get_tp_world_size() -> int:
    """How many ranks share the weights of a layer."""
    return axis("tensor", "get_tp_world_size").size


def get_tp_rank() -> int:
    """Which of them this is."""
    return axis("tensor", "get_tp_rank").index


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
