"""Step caches by the names that vLLM-Omni, SGLang and cache-dit document: mapped to ours, or refused by name.

`cache_backend="cache_dit", cache_config={"Fn_compute_blocks": 1, ...}` there is `cache="dbcache,first=1"` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, zip_longest
from types import MappingProxyType
from typing import Any

from omnimuse.core.caches import CacheConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.names import meant

BACKENDS: Mapping[str, CacheConfig] = MappingProxyType(
    {
        "none": CacheConfig(),
        "tea_cache": CacheConfig("teacache"),
        "teacache": CacheConfig("teacache"),
        "cache_dit": CacheConfig("dbcache"),
        "dbcache": CacheConfig("dbcache"),
        "mag_cache": CacheConfig("magcache"),
        "magcache": CacheConfig("magcache"),
    }
)
"""What their back ends are here."""

_SAME: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "teacache": {"rel_l1_thresh": "threshold"},
        "dbcache": {
            "Fn_compute_blocks": "first",
            "Bn_compute_blocks": "last",
            "residual_diff_threshold": "threshold",
            "max_warmup_steps": "warm_up",
            "max_cached_steps": "most",
            "max_continuous_cached_steps": "in_a_row",
            "scm_steps_mask_policy": "mask",
        },
        "magcache": {"threshold": "threshold", "magcache_thresh": "threshold", "max_skip_steps": "in_a_row"},
        "none": {},
    }
)
"""By our kind: their settings that mean what one of ours means."""

_UNBOUNDED = ("most", "in_a_row")
"""Where -1 is no bound for them."""
_MOST_BINNED = 10_000
"""Steps that bins may name."""
_FREE = 10**6
"""More steps than there are: no bound, where leaving it out would be one."""

_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = MappingProxyType(
    {
        "coefficients": ((None,), "they belong to the model: `omnimuse calibrate MODEL` fits them"),
        "warmup_interval": ((None, 1), "every step of the warm-up is computed; use a mask"),
        "enable_separate_cfg": ((None, True), "branches of guidance never share what is remembered"),
        "cfg_compute_first": ((None, False), "branches of guidance never share what is remembered"),
        "cfg_diff_compute_separate": ((None, True), "branches of guidance never share what is remembered"),
        "max_accumulated_residual_diff_threshold": ((None, 0), "skipped steps are bounded with max_cached_steps"),
        "force_refresh_step_hint": ((None,), "a mask names the steps that are computed"),
        "force_refresh_step_policy": ((None, "once"), "a mask names the steps that are computed"),
        "num_inference_steps": ((None,), "every request has its own number of steps"),
    }
)
"""Settings that mean something else than what happens here: the values that ask for nothing else, and why not more."""


def documented(backend: str, settings: Mapping[str, Any]) -> CacheConfig:
    """The choice that a back end of theirs makes with these settings; ConfigError names what cannot be honoured."""
    if backend not in BACKENDS:
        raise ConfigError(f"cache_backend={backend!r:.80} is not taken here; use one of {', '.join(BACKENDS)}")
    base = BACKENDS[backend]
    chosen: dict[str, Any] = {}
    left = dict(settings)
    if base.kind == "dbcache":
        chosen |= _forecast(left) | _masked(left)
    for name, value in left.items():
        if name in _REFUSED:
            neutral, why = _REFUSED[name]
            if value not in neutral:
                raise ConfigError(f"cache setting {name}={value!r:.80} is not supported: {why}")
            continue
        if (ours := _SAME[base.kind].get(name)) is None:
            near = meant(name, list(_SAME[base.kind]))
            known = f"did you mean {near!r}?" if near else f"it has {', '.join(_SAME[base.kind]) or 'none'}"
            raise ConfigError(f"cache_backend={backend!r} has no setting {name!r:.80}; {known}")
        if value is not None:
            chosen[ours] = _FREE if ours in _UNBOUNDED and value == -1 else value
    return CacheConfig(base.kind, **chosen)


def polynomial(backend: str, settings: Mapping[str, Any]) -> tuple[tuple[float, ...], Mapping[str, Any]]:
    """TeaCache's coefficients, if it was given some, which only a pipeline of the contract takes; and all else."""
    given = settings.get("coefficients")
    if given is None or backend not in BACKENDS or BACKENDS[backend].kind != "teacache":
        return (), settings
    if not isinstance(given, list | tuple) or not given or not all(type(each) in (int, float) for each in given):
        raise ConfigError(f"cache setting coefficients={given!r:.80} is not a list of numbers")
    return tuple(map(float, given)), {name: value for name, value in settings.items() if name != "coefficients"}


def _forecast(settings: dict[str, Any]) -> dict[str, Any]:
    """TaylorSeer, which is a switch and an order there and an order here."""
    on, order = settings.pop("enable_taylorseer", None) or False, settings.pop("taylorseer_order", None)
    if not isinstance(on, bool):
        raise ConfigError(f"cache setting enable_taylorseer={on!r:.80} is not true or false")
    return {"order": 1 if order is None else order} if on else {}


def _masked(settings: dict[str, Any]) -> dict[str, Any]:
    """Masks: a word, a list of ones and zeros or bins, and whether what they leave out is skipped in any case."""
    found: dict[str, Any] = {}
    if settings.get("scm_steps_mask_policy") == "none":  # as they write that there is no mask
        del settings["scm_steps_mask_policy"]
    ways = {"steps_computation_mask": _listed(settings), "scm_compute_bins": _binned(settings)}
    given = {name: mask for name, mask in ways.items() if mask}
    named = {"scm_steps_mask_policy"} if settings.get("scm_steps_mask_policy") is not None else set()
    if len(both := sorted(named | set(given))) > 1:
        raise ConfigError(f"cache settings {' and '.join(both)} are {len(both)} masks; leave all out but one")
    if given:
        found["mask"] = next(iter(given.values()))
    policies = [settings.pop(name, None) for name in ("scm_steps_policy", "steps_computation_policy")]
    if None not in policies and policies[0] != policies[1]:
        scm, computed = policies
        raise ConfigError(
            f"cache settings scm_steps_policy={scm!r:.80} and steps_computation_policy={computed!r:.80} mean one thing "
            "and say two; leave one out"
        )
    for policy in policies:
        if policy not in (None, "dynamic", "static"):
            raise ConfigError(f"cache setting scm_steps_policy={policy!r:.80} is not known; use 'dynamic' or 'static'")
    if "static" in policies:
        if not given and not named:
            raise ConfigError(
                "cache setting scm_steps_policy='static' skips what a mask does not name, and there is none; give "
                "scm_steps_mask_policy, steps_computation_mask, or scm_compute_bins and scm_cache_bins"
            )
        found["forced"] = True
    return found


def _listed(settings: dict[str, Any]) -> str:
    """The digits of a list of ones and zeros; empty if there is none."""
    if (steps := settings.pop("steps_computation_mask", None)) is None:
        return ""
    if not isinstance(steps, list | tuple) or not steps or not all(step in (0, 1) for step in steps):
        raise ConfigError(f"cache setting steps_computation_mask={steps!r:.80} is not a list of ones and zeros")
    return "".join("1" if step else "0" for step in steps)


def _binned(settings: dict[str, Any]) -> str:
    """The digits of bins: in turns so many steps that are computed, and so many that may be skipped; empty if there
    are none.
    """
    names = ("scm_compute_bins", "scm_cache_bins")
    bins = [settings.pop(name, None) for name in names]
    if bins == [None, None]:
        return ""
    for name, each in zip(names, bins, strict=True):
        whole = isinstance(each, list | tuple) and all(type(steps) is int and steps > 0 for steps in each)
        if not whole or not 0 < sum(each) <= _MOST_BINNED:
            raise ConfigError(
                f"cache setting {name}={each!r:.80} is not a list of numbers of steps, at least 1 each and "
                f"{_MOST_BINNED} together; both lists are needed"
            )
    counts = [steps for pair in zip_longest(*bins, fillvalue=0) for steps in pair]
    return "".join(digit * steps for steps, digit in zip(counts, cycle("10")))
