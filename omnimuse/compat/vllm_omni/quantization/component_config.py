"""`vllm_omni.quantization.component_config`: weights are packed by the engine, so no layer is given a way to."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from omnimuse.core.errors import ModelError


def safe_quant_config(quant_config: QuantizationConfig | None) -> QuantizationConfig | None:
    """What a layer may be given: the same, which is None in this engine."""
    return quant_config


def build_quant_config(spec: Any, *args: Any) -> None:
    """None for nothing; anything else is refused: weights are packed by the engine."""
    if spec:
        raise ModelError(f"quantization={spec!r} is not taken; start the engine with --quantize")


def resolve_component_quant_config(quant_config: QuantizationConfig | None, *args: Any) -> QuantizationConfig | None:
    """What a part may be given: the same, which is None in this engine."""
    return quant_config


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
