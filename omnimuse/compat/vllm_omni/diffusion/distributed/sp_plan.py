"""`vllm_omni.diffusion.distributed.sp_plan`: where a network's tokens are shared out among ranks, and joined again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnimuse.compat.contract.names import no_name


@dataclass(frozen=True)
class SequenceParallelInput:
    """A tensor of `expected_dims` dimensions, cut along `split_dim`: an input of a module or, so said, its output."""

    split_dim: int
    expected_dims: int | None = None
    split_output: bool = False
    auto_pad: bool = False


@dataclass(frozen=True)
class SequenceParallelOutput:
    """An output of a module, of which all ranks' parts are joined along `gather_dim`."""

    gather_dim: int
    expected_dims: int | None = None


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
