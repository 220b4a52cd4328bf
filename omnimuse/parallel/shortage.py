"""Memory that runs out: how it is known, and what ranks tell each other of it.

A rank that runs out alone must not try again alone: the others would go on without it. So where a stage is worth a
second try, all say after each try whether it was too much for them; if it was for any, all try again, with less.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from omnimuse.core.errors import EngineDeadError
from omnimuse.parallel.mesh import Axis

_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


class ElsewhereError(MemoryError):
    """Memory ran out on another rank, and here it did not."""

    def __init__(self) -> None:
        super().__init__("another rank ran out of memory")


def is_shortage(error: BaseException) -> bool:
    """Whether `error` says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_short(axis: Axis, error: BaseException | None) -> bool:
    """Whether memory ran out on any rank of `axis`; every one of them asks, after the same work, with how it ended.

    EngineDeadError if one of them does not answer.
    """
    here = error is not None and is_shortage(error)
    if axis.size == 1:
        return here
    told = torch.tensor([int(here)])
    try:
        dist.all_reduce(told, dist.ReduceOp.MAX, group=axis.control)
    except RuntimeError as problem:
        raise EngineDeadError(f"a rank hangs or is gone ({problem}); start the engine again") from problem
    return bool(told)
