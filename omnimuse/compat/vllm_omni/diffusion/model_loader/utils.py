"""`vllm_omni.diffusion.model_loader.utils`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.model_executor.model_loader.weight_utils import download_weights_from_hf_specific

__all__ = ["download_weights_from_hf_specific"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
