"""`sglang.multimodal_gen.runtime.distributed`: the device, and the ranks that share the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.contract.surroundings import axis, here
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import SEQUENCE


def get_local_torch_device() -> torch.device:
    """The engine's device."""
    return here("get_local_torch_device").device


def get_sp_world_size() -> int:
    """How many ranks share the tokens of a row."""
    return axis(SEQUENCE, "get_sp_world_size").size


def get_sp_parallel_rank() -> int:
    """Which of them this is."""
    return axis(SEQUENCE, "get_sp_parallel_rank").index


def sequence_model_parallel_all_gather(input_: Tensor, dim: int = -1) -> Tensor:
    """What all of them have, which is of one shape, end to end along `dim`."""
    ranks = axis(SEQUENCE, "sequence_model_parallel_all_gather")
    parts = gathered(ranks, input_[None].contiguous(), [1] * ranks.size)
    return torch.cat([part[0] for part in parts], dim)


def get_tp_world_size() -> int:
    """How many ranks share the weights of a layer."""
    return axis("tensor", "get_tp_world_size").size


def get_tp_rank() -> int:
    """Which of them this is."""
    return axis("tensor", "get_tp_rank").index


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
