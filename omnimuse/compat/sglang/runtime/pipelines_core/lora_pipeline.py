"""`sglang.multimodal_gen.runtime.pipelines_core.lora_pipeline`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase


class LoRAPipeline(ComposedPipelineBase):
    """A pipeline whose network may wear adapters. The name is here; adapters on such a pipeline are refused."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
