"""`sglang.multimodal_gen.runtime.pipelines_core.lora_pipeline`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase


class LoRAPipeline(ComposedPipelineBase):
    """A mark: networks of every composed pipeline wear adapters."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
