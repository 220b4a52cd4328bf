"""The step cache that a request chooses, from the fields that clients have for it: one text of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.core.cache_names import documented
from omnimuse.core.caches import CacheConfig
from omnimuse.core.errors import ConfigError
from omnimuse.server.errors import refusal


def chosen_cache(values: Mapping[str, Any], names: Mapping[str, str]) -> tuple[str, str] | None:
    """The choice and the field that it came in, of values by target; None: there is none, the server's counts.

    Fields that switch a cache off ask for nothing: `cache` with "none" does. ApiError where two fields choose.
    """
    fields = [target for target in ("cache", "teacache", "cache_dit", "cache_settings") if values.get(target)]
    if not fields:
        return None
    name = names[fields[-1]]
    if "cache_settings" in fields and values.get("cache_dit") is False:
        message = f"{name} has a meaning with {names['cache_dit']}=true only; leave one of them out"
        raise refusal("conflicting_parameters", message, name)
    if fields not in (["cache"], ["teacache"], ["cache_dit"], ["cache_settings"], ["cache_dit", "cache_settings"]):
        message = f"{names[fields[0]]} and {name} both choose a step cache; leave one of them out"
        raise refusal("conflicting_parameters", message, name)
    if fields == ["cache"]:
        return values["cache"], name
    if fields == ["teacache"]:
        return str(CacheConfig("teacache")), name
    try:
        return str(documented("cache_dit", values.get("cache_settings") or {})), name
    except ConfigError as problem:
        raise refusal("invalid_value", str(problem), name) from problem
