"""`sglang.multimodal_gen.runtime.pipelines.stages.base`: an older place of what `pipelines_core` has."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage, StageParallelismType

__all__ = ["PipelineStage", "StageParallelismType"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
