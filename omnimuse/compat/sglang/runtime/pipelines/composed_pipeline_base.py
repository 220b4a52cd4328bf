"""`sglang.multimodal_gen.runtime.pipelines.composed_pipeline_base`: an older place of what `pipelines_core` has."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase

__all__ = ["ComposedPipelineBase"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
