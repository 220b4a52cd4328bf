"""`sglang.multimodal_gen.runtime.pipelines`: an older place of `pipelines_core`, which the guide links to."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core import ComposedPipelineBase, LoRAPipeline, OutputBatch, Req

__all__ = ["ComposedPipelineBase", "LoRAPipeline", "OutputBatch", "Req"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
