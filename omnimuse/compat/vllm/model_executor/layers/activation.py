"""`vllm.model_executor.layers.activation`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from omnimuse.compat.contract.names import no_name


class SiluAndMul(nn.Module):
    """silu of the first half of the last dimension, times the second."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up


def get_act_fn(act_fn_name: str) -> nn.Module:
    """The activation of that name, as transformers has it."""
    found: nn.Module = ACT2FN[act_fn_name]
    return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
