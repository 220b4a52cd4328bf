"""`vllm_omni.diffusion.cache.teacache.extractors`: who takes calls of networks apart, by the networks' classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ConfigError

Extractor = Callable[..., Any]
"""(network, *arguments of its `forward`): that call, taken apart, as a `CacheContext`."""

EXTRACTOR_REGISTRY: dict[str, Extractor] = {}
"""By the class of a network; files of pipelines add theirs."""


def register_extractor(transformer_cls_name: str, extractor_fn: Extractor) -> None:
    """Add one, or put it in the place of another."""
    EXTRACTOR_REGISTRY[transformer_cls_name] = extractor_fn


def get_extractor(transformer_cls_name: str) -> Extractor:
    """That of a class; ConfigError where it has none."""
    if transformer_cls_name not in EXTRACTOR_REGISTRY:
        known = ", ".join(sorted(EXTRACTOR_REGISTRY)) or "none"
        raise ConfigError(
            f"TeaCache has no extractor for {transformer_cls_name} (known: {known}); register one in the pipeline's "
            'file with register_extractor, or use cache_backend="cache_dit" (`--cache dbcache`)'
        )
    return EXTRACTOR_REGISTRY[transformer_cls_name]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
