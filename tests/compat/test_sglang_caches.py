"""Step caches as SGLang's scripts choose them: fields of a request, variables of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from omnimuse.compat.sglang.runtime.entrypoints.caching import cache_of
from omnimuse.compat.sglang.runtime.entrypoints.command import serving
from omnimuse.compat.sglang.runtime.entrypoints.options import config_of
from omnimuse.core.caches import OFF, cache_named
from omnimuse.core.errors import ConfigError, RequestError

THEIRS = "dbcache,threshold=0.24,first=1,last=0,warm_up=4,in_a_row=3"
"""What SGLang's caches are where nothing else is said."""


def said(**variables: str) -> dict[str, str]:
    return {f"SGLANG_CACHE_DIT_{name}": text for name, text in variables.items()}


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({}, "none"),
        ({"ENABLED": "false", "FN": "2", "NONSENSE": "1"}, "none"),
        ({"ENABLED": "true"}, THEIRS),
        (
            {"ENABLED": "1", "FN": "2", "BN": "1", "RDT": "0.4", "MC": "4", "TAYLORSEER": "true", "TS_ORDER": "2"},
            "dbcache,threshold=0.4,first=2,last=1,warm_up=4,in_a_row=4,order=2",
        ),
        ({"ENABLED": "True", "SCM_PRESET": "fast", "SCM_POLICY": "static"}, f"{THEIRS},mask=fast,forced=true"),
        ({"ENABLED": "true", "SCM_COMPUTE_BINS": "3,1", "SCM_CACHE_BINS": "2,1"}, f"{THEIRS},mask=1110010"),
    ],
)
def test_variables_choose_a_cache_for_all_requests(
    variables: Mapping[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said(**variables).items():
        monkeypatch.setenv(name, value)
    assert config_of({"model_path": "m"}).cache == cache_named(text)
    assert ("--cache" in serving({"model_path": "m"})) == (text != "none")


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"ENABLED": "yes"}, "SGLANG_CACHE_DIT_ENABLED='yes'"),
        ({"ENABLED": "true", "FN": "two"}, "SGLANG_CACHE_DIT_FN='two'"),
        ({"ENABLED": "true", "SECONDARY_FN": "2"}, "SGLANG_CACHE_DIT_SECONDARY_FN"),
        ({"ENABLED": "true", "SCM_COMPUTE_BINS": "3,1"}, "scm_cache_bins=None"),
        ({"ENABLED": "true", "SCM_POLICY": "static"}, "scm_steps_policy='static'"),
    ],
)
def test_a_variable_that_cannot_be_honoured_is_named(
    variables: Mapping[str, str], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said(**variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=names):
        config_of({"model_path": "m"})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, ""),
        ({"enable_teacache": False, "enable_cache_dit": False, "cache_dit_params": None}, ""),
        ({"enable_teacache": True}, "teacache"),
        ({"enable_cache_dit": True}, "dbcache"),
        ({"cache_dit_params": {"Fn_compute_blocks": 2}}, "dbcache,first=2"),
        ({"enable_cache_dit": True, "cache_dit_params": {"max_warmup_steps": 1}}, "dbcache,warm_up=1"),
    ],
)
def test_fields_of_a_request_choose_one(given: Mapping[str, Any], text: str) -> None:
    assert cache_of(given) == (text and str(cache_named(text)))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"enable_teacache": True, "enable_cache_dit": True}, "both choose"),
        ({"enable_cache_dit": False, "cache_dit_params": {"Fn_compute_blocks": 2}}, "enable_cache_dit=False"),
        ({"cache_dit_params": {"Fn_compute_block": 2}}, "did you mean 'Fn_compute_blocks'"),
        ({"cache_dit_params": 7}, "cache_dit_params=7"),
    ],
)
def test_fields_that_contradict_are_refused(given: Mapping[str, Any], names: str) -> None:
    with pytest.raises(RequestError, match=names):
        cache_of(given)


def test_nothing_said_is_no_cache() -> None:
    assert config_of({"model_path": "m"}).cache == OFF
