"""`sglang.multimodal_gen.runtime.pipelines_core`: what pipelines are composed with."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from omnimuse.compat.sglang.runtime.pipelines_core.lora_pipeline import LoRAPipeline
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import ForwardBatch, OutputBatch, Req

__all__ = ["ComposedPipelineBase", "ForwardBatch", "LoRAPipeline", "OutputBatch", "Req"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
