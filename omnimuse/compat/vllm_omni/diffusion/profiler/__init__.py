"""`vllm_omni.diffusion.profiler`."""

from omnimuse.compat.vllm_omni.diffusion.profiler.diffusion_pipeline_profiler import DiffusionPipelineProfilerMixin

__all__ = ["DiffusionPipelineProfilerMixin"]
