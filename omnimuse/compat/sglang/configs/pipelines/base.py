"""`sglang.multimodal_gen.configs.pipelines`: an older place of `pipeline_configs`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.pipeline_configs.base import ModelTaskType, PipelineConfig

__all__ = ["ModelTaskType", "PipelineConfig"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
