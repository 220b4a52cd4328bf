"""`vllm_omni.diffusion.layers.norm`."""

from __future__ import annotations

from omnimuse.compat.vllm.model_executor.layers.layernorm import RMSNorm

__all__ = ["RMSNorm"]
