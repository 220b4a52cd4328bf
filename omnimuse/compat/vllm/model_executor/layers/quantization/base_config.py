"""`vllm.model_executor.layers.quantization.base_config`: a name for annotations."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name


class QuantizationConfig:
    """What files of the contract annotate arguments with. There is none here: weights are quantized by our passes."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
