"""`vllm_omni.diffusion.offloader`: what a pipeline says of its weights that may wait. Moving them is the engine's."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.diffusion.offloader.config import OffloadStrategy
from omnimuse.compat.vllm_omni.diffusion.offloader.offload_plan import OffloadPlan, get_offload_plan

__all__ = ["OffloadPlan", "OffloadStrategy", "get_offload_plan"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
