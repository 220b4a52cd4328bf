"""`vllm_omni.diffusion.utils.flow_matching`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_name


def safe_linalg_solve(matrix: Tensor, rhs: Tensor) -> Tensor:
    """The x of matrix x = rhs."""
    return torch.linalg.solve(matrix, rhs)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
