"""`vllm_omni.diffusion.cache.cache_dit_backend`: cache-dit in a pipeline that has its loop in `forward`.

Where the engine owns the loop, its own step cache goes around the blocks that a network declares, and nothing here is
used. A `forward` is one output's from its first step to its last, so cache-dit may change the network itself: before
each call it is told how many steps there will be, and forgets the output before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.diffusers.stepcache import LOGGER, PACKAGE
from omnimuse.core.errors import ConfigError


class CacheSettings:
    """What was chosen, in cache-dit's words, which are attributes: an enabler's `cache_config`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        vars(self).update(settings)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


Refresh = Callable[..., None]
"""(pipeline, num_inference_steps, verbose): what comes next is another output, of so many steps."""

Enabler = Callable[[Any, CacheSettings], Refresh]

CUSTOM_DIT_ENABLERS: dict[str, Enabler] = {}
"""By the class of a pipeline, what puts cache-dit around its blocks; files of pipelines add theirs."""


class CacheDiTBackend:
    """cache-dit in one pipeline, by the enabler that its class has, or as it finds the blocks itself."""

    def __init__(self, cache_config: Mapping[str, Any]) -> None:
        self.config = CacheSettings(cache_config)
        self._refresh: Refresh | None = None

    def is_enabled(self) -> bool:
        """Whether it is in a pipeline."""
        return self._refresh is not None

    def enable(self, pipeline: Any) -> None:
        """Put it there; ConfigError where it cannot be, with what the package says."""
        if find_spec(PACKAGE) is None:
            raise ConfigError('cache_backend="cache_dit" needs cache-dit here: pip install "omnimuse[cache-dit]"')
        for handler in logging.getLogger(LOGGER).handlers:
            handler.setLevel(logging.ERROR)  # it tells of everything on standard output, where results are told
        name = type(pipeline).__name__
        try:
            self._refresh = CUSTOM_DIT_ENABLERS.get(name, enable_cache_for_dit)(pipeline, self.config)
        except (AssertionError, ValueError) as problem:
            raise ConfigError(
                f"cache-dit cannot cache {name}: {problem}. Add what says which its blocks are to CUSTOM_DIT_ENABLERS, "
                "or give its loop away in the four methods"
            ) from problem

    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        """What comes next is another output, of so many steps."""
        assert self._refresh is not None, "enable it first"
        self._refresh(pipeline, num_inference_steps, verbose=verbose)


def enable_cache_for_dit(pipeline: Any, cache_config: CacheSettings) -> Refresh:
    """Around the blocks of `pipeline.transformer` that cache-dit finds itself."""
    import cache_dit

    cache_dit.enable_cache(pipeline.transformer, cache_config=cache_dit.DBCacheConfig(**vars(cache_config)))

    def refresh_cache_context(pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
        cache_dit.refresh_context(pipeline.transformer, num_inference_steps=num_inference_steps, verbose=verbose)

    return refresh_cache_context


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
