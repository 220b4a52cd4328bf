"""`vllm_omni.diffusion.layers.NAME_select01_modulation`: each token has one of two modulations, by an index.

Letters: B batch, S tokens, D width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


def select01_modulation_native(mod_params: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[2 B, 3 D], whose second half is for tokens with a one in `index` [B or 1, S] -> scale, shift, gate [B, S, D]."""
    if len(mod_params) % 2:
        raise ValueError(f"{len(mod_params)} modulations are none of two for each of a batch")
    zero, one = (half[:, None] for half in mod_params.chunk(2))  # [B, 1, 3 D]
    shift, scale, gate = torch.where(index.bool()[..., None], one, zero).chunk(3, dim=-1)
    return scale, shift, gate


def _never(x: Tensor) -> bool:
    """There is no such kernel: code then writes it out."""
    return False


def _refused(*args: Any) -> Any:
    """Refused: ask first."""
    raise ModelError(
        "fused norms with two modulations are not here; call them only where they are said to be supported"
    )


def __getattr__(name: str) -> Any:
    if re.fullmatch(r"can_use_\w+_triton", name):
        return _never
    if re.fullmatch(r"fused_\w*layernorm_select01", name):
        return _refused
    raise no_name(__name__, name)
