"""`vllm_omni.diffusion.profiler`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.diffusion.profiler.diffusion_pipeline_profiler import DiffusionPipelineProfilerMixin

__all__ = ["DiffusionPipelineProfilerMixin"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
