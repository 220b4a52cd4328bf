"""`vllm_omni.diffusion.model_loader.utils`."""

from __future__ import annotations

from omnimuse.compat.vllm_omni.model_executor.model_loader.weight_utils import download_weights_from_hf_specific

__all__ = ["download_weights_from_hf_specific"]
