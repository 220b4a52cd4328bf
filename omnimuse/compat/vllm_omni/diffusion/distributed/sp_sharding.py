"""`vllm_omni.diffusion.distributed.sp_sharding`: tokens that a network shares out itself, in its `forward`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import axis
from omnimuse.core.errors import ModelError
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import SEQUENCE


def sp_shard(tensor: Tensor, dim: int, validate: bool = True) -> Tensor:
    """This rank's part along `dim`, in as many as there are ranks that share tokens; ModelError for unequal ones."""
    ranks = axis(SEQUENCE, "sp_shard")
    if tensor.shape[dim] % ranks.size:
        raise ModelError(
            f"{tensor.shape[dim]} tokens cannot be shared evenly by {ranks.size} ranks; take another size, or fewer"
        )
    return tensor.chunk(ranks.size, dim)[ranks.index]


def sp_gather(tensor: Tensor, dim: int, validate: bool = True) -> Tensor:
    """The parts of all ranks, in order."""
    ranks = axis(SEQUENCE, "sp_gather")
    return torch.cat([part[0] for part in gathered(ranks, tensor[None], [1] * ranks.size)], dim)


def sp_shard_with_padding(tensor: Tensor, dim: int, pad_value: float = 0.0) -> tuple[Tensor, int]:
    """The same of any number of tokens, and how many were put behind them for that."""
    missing = -tensor.shape[dim] % axis(SEQUENCE, "sp_shard_with_padding").size
    shape = [missing if at == dim % tensor.ndim else size for at, size in enumerate(tensor.shape)]
    return sp_shard(torch.cat([tensor, tensor.new_full(shape, pad_value)], dim), dim), missing


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
