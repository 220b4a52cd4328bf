"""`vllm_omni.diffusion.attention.backends.utils.fa`: kernels that are not here; code that asks writes it out."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name

KERNELS = ("flash_attn_func", "flash_attn_varlen_func")
"""None, each."""


def __getattr__(name: str) -> Any:
    if name in KERNELS:
        return None
    raise no_name(__name__, name)
