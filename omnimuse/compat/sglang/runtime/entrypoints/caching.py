"""Step caches as SGLang's scripts choose them: in fields of a request, and in the environment for all requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.core.cache_names import documented
from omnimuse.core.caches import OFF, CacheConfig
from omnimuse.core.environment import CACHE_DIT, Environment
from omnimuse.core.errors import ConfigError, RequestError


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


VARIABLES: Mapping[str, tuple[str, Callable[[str], Any], Any]] = MappingProxyType(
    {
        "FN": ("Fn_compute_blocks", int, 1),
        "BN": ("Bn_compute_blocks", int, 0),
        "WARMUP": ("max_warmup_steps", int, 4),
        "RDT": ("residual_diff_threshold", float, 0.24),
        "MC": ("max_continuous_cached_steps", int, 3),
        "TAYLORSEER": ("enable_taylorseer", _switch, False),
        "TS_ORDER": ("taylorseer_order", int, 1),
        "SCM_PRESET": ("scm_steps_mask_policy", str, "none"),
        "SCM_POLICY": ("scm_steps_policy", str, "dynamic"),
        "SCM_COMPUTE_BINS": ("scm_compute_bins", _numbers, None),
        "SCM_CACHE_BINS": ("scm_cache_bins", _numbers, None),
    }
)
"""Behind `SGLANG_CACHE_DIT_`: the setting of cache-dit, how its text is read, and what it is where nothing is said."""


def cache_of(given: Mapping[str, Any]) -> str:
    """The step cache that sampling parameters choose; empty if none does. RequestError where two do."""
    settings, library = given.get("cache_dit_params"), given.get("enable_cache_dit")
    if given.get("enable_teacache"):
        if settings or library:
            raise RequestError(
                "enable_teacache and cache-dit both choose a step cache; leave one out", "enable_teacache"
            )
        return str(CacheConfig("teacache"))
    if not (settings or library):
        return ""
    if settings and library is False and "enable_cache_dit" in given:
        raise RequestError(
            "cache_dit_params mean nothing with enable_cache_dit=False; leave one out", "cache_dit_params"
        )
    if not isinstance(settings or {}, Mapping):
        raise RequestError(f"cache_dit_params={settings!r:.80} are no names and values", "cache_dit_params")
    try:
        return str(documented("cache_dit", settings or {}))
    except ConfigError as problem:
        raise RequestError(str(problem), "cache_dit_params") from problem


def cache_of_variables() -> CacheConfig:
    """The one that the environment chooses for all requests; ConfigError names a variable that cannot be honoured."""
    said = {name: text.strip() for name, text in Environment.read().cache_dit.items() if text.strip()}
    if not _read("ENABLED", _switch, said.pop("ENABLED", "false")):
        return OFF
    settings = {setting: neutral for setting, _, neutral in VARIABLES.values() if neutral is not None}
    for name, text in said.items():
        if (known := VARIABLES.get(name)) is None:
            raise ConfigError(f"{CACHE_DIT}{name} is not taken here: one choice is for all networks; unset it")
        setting, read, _ = known
        settings[setting] = _read(name, read, text)
    return documented("cache_dit", settings)


def _read(name: str, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError:
        raise ConfigError(f"{CACHE_DIT}{name}={text!r:.80} is not understood") from None


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
