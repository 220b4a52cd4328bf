"""`vllm.distributed`: the ranks that share weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omnimuse.compat.contract.groups import Group
from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import axis
from omnimuse.parallel.mesh import TENSOR


def get_tensor_model_parallel_world_size() -> int:
    """How many share weights."""
    return axis(TENSOR, "get_tensor_model_parallel_world_size").size


def get_tensor_model_parallel_rank() -> int:
    """Which of them this is."""
    return axis(TENSOR, "get_tensor_model_parallel_rank").index


def tensor_model_parallel_all_reduce(input_: Tensor) -> Tensor:
    """The sum of what every rank has."""
    return Group(axis(TENSOR, "tensor_model_parallel_all_reduce")).all_reduce(input_)


def tensor_model_parallel_all_gather(input_: Tensor, dim: int = -1) -> Tensor:
    """What every rank has, joined along `dim`."""
    found = Group(axis(TENSOR, "tensor_model_parallel_all_gather")).all_gather(input_, dim)
    assert isinstance(found, Tensor)
    return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
