"""`vllm_omni.diffusion.cache.teacache`: TeaCache by what an extractor takes out of a network's call."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.config import TeaCacheConfig
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.context import CacheContext
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.extractors import register_extractor

__all__ = ["CacheContext", "TeaCacheConfig", "register_extractor"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
