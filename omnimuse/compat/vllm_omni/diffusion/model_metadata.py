"""`vllm_omni.diffusion.model_metadata`: how many pictures a prompt may come with, in every `NAME_MAX_INPUT_IMAGES`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name

MAX_INPUT_IMAGES = 4


def __getattr__(name: str) -> Any:
    if name.endswith("_MAX_INPUT_IMAGES"):
        return MAX_INPUT_IMAGES
    raise no_name(__name__, name)
