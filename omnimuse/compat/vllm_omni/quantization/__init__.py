"""`vllm_omni.quantization`: weights are packed by the engine, and not by a pipeline."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.quantization.component_config import build_quant_config, resolve_component_quant_config

__all__ = ["build_quant_config", "resolve_component_quant_config"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
