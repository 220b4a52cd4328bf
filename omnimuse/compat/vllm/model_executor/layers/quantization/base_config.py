"""`vllm.model_executor.layers.quantization.base_config`: a name for annotations."""

from __future__ import annotations


class QuantizationConfig:
    """What files of the contract annotate arguments with. There is none here: weights are quantized by our passes."""
