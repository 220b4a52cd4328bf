"""`sglang.multimodal_gen.runtime.layers.layernorm`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.vllm.model_executor.layers.layernorm import RMSNorm

__all__ = ["RMSNorm"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
