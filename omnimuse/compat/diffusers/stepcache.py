"""Step caches of pipelines that the library runs: those of cache-dit, where it is installed and knows the pipeline.

cache-dit changes what it is given: the network's `forward`, the class's `__call__`. Outputs take turns on a network, so
each gets a class and a network of its own here, around the same weights, and what is remembered belongs to one output.
Whether there is a cache is read from cache-dit's source, and needs no torch.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnimuse.core.caches import OFF, CacheConfig, Fits, cache_named, completed
from omnimuse.core.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from torch import nn

PACKAGE = "cache_dit"
LOGGER = "CACHE_DIT"
FITS = Fits(only=("dbcache",))
"""What is known of such pipelines: that cache-dit's is the only kind."""
CHOICE = "step_cache"
"""Among the components of a pipeline: the engine's choice, of requests that have none."""

_REGISTERED = re.compile(r'^@BlockAdapterRegister\.register\("(\w+)"', re.MULTILINE)


@cache
def known() -> tuple[str, ...]:
    """How the names of pipelines begin that the installed cache-dit caches; none where it is not installed."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        return ()
    file = Path(found.origin).parent / "caching" / "block_adapters" / "adapters.py"
    return tuple(_REGISTERED.findall(file.read_text(encoding="utf-8"))) if file.exists() else ()


def obstacle(arch: str) -> str:
    """Why `arch` has no step cache; empty if it has one."""
    if find_spec(PACKAGE) is None:
        return 'it runs through diffusers, whose step caches are those of cache-dit: pip install "omnimuse[cache-dit]"'
    if not any(arch.startswith(name) for name in known()):
        return f"it runs through diffusers, and cache-dit knows no pipeline {arch}"
    return ""


def check(arch: str, choice: CacheConfig) -> None:
    """ConfigError for an engine's choice that such a pipeline cannot have."""
    if choice.kind == "none":
        return
    if why := obstacle(arch):
        raise ConfigError(f"cache cannot be chosen for this model: {why}. Leave cache={choice.kind!r} out")
    completed(choice, FITS)


def settings(choice: CacheConfig) -> dict[str, Any]:
    """A complete choice in cache-dit's words (`core/cache_names.py` reads them)."""
    found: dict[str, Any] = {
        "Fn_compute_blocks": choice.first,
        "Bn_compute_blocks": choice.last,
        "residual_diff_threshold": choice.threshold,
        "max_warmup_steps": choice.warm_up,
        "max_cached_steps": -1 if choice.most is None else choice.most,
        "max_continuous_cached_steps": -1 if choice.in_a_row is None else choice.in_a_row,
    }
    if choice.mask:
        found["steps_computation_mask"] = [int(digit) for digit in choice.mask]
        found["steps_computation_policy"] = "static" if choice.forced else "dynamic"
    return found


def chosen(asked: str | None, engines: CacheConfig, evaluations: int) -> CacheConfig:
    """The choice of one output of so many `evaluations`, complete: what its request says (which the door has
    completed), or the engine's. There is no mask for one evaluation, of which nothing is skipped.
    """
    if asked is not None:
        return cache_named(asked)
    return OFF if engines.mask and evaluations == 1 else completed(engines, FITS, evaluations)


def apart(cls: type, components: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """A class and components that only one output has: networks with the same weights, and lists of blocks."""
    from diffusers import ModelMixin

    own = {name: _twin(part) if isinstance(part, ModelMixin) else part for name, part in components.items()}
    return type(cls.__name__, (cls,), {"__module__": cls.__module__}), own


def put_on(pipe: Any, choice: CacheConfig) -> None:
    """Have cache-dit work in `pipe`, which is one output's alone; RequestError where it refuses the choice."""
    from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig, enable_cache

    for handler in logging.getLogger(LOGGER).handlers:
        handler.setLevel(logging.ERROR)  # it tells of everything on standard output, where results are told
    forecast = TaylorSeerCalibratorConfig(taylorseer_order=choice.order) if choice.order else None
    try:
        enable_cache(pipe, cache_config=DBCacheConfig(**settings(choice)), calibrator_config=forecast)
    except (AssertionError, ValueError) as problem:
        raise RequestError(f"cache-dit cannot cache {type(pipe).__name__}: {problem}", "cache") from problem


def _twin(network: nn.Module) -> nn.Module:
    """The same weights in another module, whose lists of blocks are its own, too."""
    from torch import nn

    twin = copy.copy(network)
    twin.__dict__.pop("_diffusers_hook", None)  # the library's own hooks know the network that they are on
    twin._modules = {
        name: _twin(part) if isinstance(part, nn.ModuleList) else part for name, part in network._modules.items()
    }
    return twin
