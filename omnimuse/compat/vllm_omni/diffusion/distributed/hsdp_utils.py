"""`vllm_omni.diffusion.distributed.hsdp_utils`."""

from __future__ import annotations

from typing import Any

from torch import nn

from omnimuse.compat.contract.names import no_name


def is_transformer_block_module(name: str, module: nn.Module) -> bool:
    """Whether a module called so is one of a list of blocks."""
    *owners, last = name.split(".")
    return last.isdigit() and any("blocks" in owner or "layers" in owner for owner in owners)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
