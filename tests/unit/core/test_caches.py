"""A step cache is chosen by one text, which says all of it; other programs' names are honoured or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from omnimuse.core.cache_names import documented, polynomial
from omnimuse.core.caches import BY_NAME, OFF, PRESETS, CacheConfig, Fits, TeaFit, asked_for, cache_named, completed
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.step_masks import MASKS, step_mask
from omnimuse.models import REGISTRY


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("none", OFF),
        ("teacache", CacheConfig("teacache")),
        ("taylorseer", CacheConfig("dbcache", order=1)),
        ("taylorseer, order=2, threshold=1e-1", CacheConfig("dbcache", 0.1, order=2)),
        ("dbcache,first=2,last=1,warm_up=0,most=9,in_a_row=2", CacheConfig("dbcache", None, 2, 1, 0, 9, 2)),
        ("dbcache,first=0,last=0,warm_up=0,most=0,in_a_row=1,order=4", CacheConfig("dbcache", None, 0, 0, 0, 0, 1, 4)),
        ("magcache,mask=10110,forced=true", CacheConfig("magcache", mask="10110", forced=True)),
        *((name, CacheConfig(name)) for name in PRESETS),  # type: ignore[arg-type]
    ],
)
def test_a_text_makes_a_choice_and_the_choice_its_text(text: str, choice: CacheConfig) -> None:
    assert cache_named(text) == choice
    assert cache_named(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dbcashe", "did you mean 'dbcache'"),
        ("", "use one of none, auto"),
        ("dbcache,first", "is not NAME=VALUE with one of threshold, first, last"),
        ("dbcache,mask=", "'mask=' has no value; give it one, or leave it out"),
        ("dbcache,treshold=1", "cache has no setting 'treshold'; did you mean 'threshold'?"),
        ("dbcache,kind=none", "cache has no setting 'kind'; there are threshold, first, last"),
        ("dbcache,first=1,first=2", "first is there twice"),
        ("dbcache,first=x", "not a whole number"),
        ("dbcache,first=-1", "at least 0"),
        ("dbcache,in_a_row=0", "at least 1"),
        ("dbcache,threshold=much", "not a number"),
        ("dbcache,threshold=nan", "a number >= 0"),
        ("dbcache,threshold=inf", "a number >= 0"),
        ("dbcache,threshold=-1", "a number >= 0"),
        ("dbcache,order=9", "from 0 to 4"),
        ("dbcache,mask=102", "slow, medium, fast, ultra"),
        ("dbcache,forced=true", "there is none"),
        ("dbcache,mask=101,forced=1", "not true or false"),
        ("teacache,first=1", "means nothing to 'teacache'"),
        ("magcache,last=0", "means nothing to 'magcache'"),
        ("none,threshold=1", "means nothing to 'none'"),
        ("auto,order=1", "means nothing to 'auto'"),
        ("fast,threshold=1", "means nothing to 'fast'"),
    ],
)
def test_a_text_that_makes_no_sense_is_refused_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cache_named(text)


@pytest.mark.parametrize(
    "made",
    [
        lambda: TeaFit(()),
        lambda: TeaFit((1.0, math.inf)),
        lambda: TeaFit((1.0,), -1.0),
        lambda: Fits(ratios=(1.0, -0.1)),
        lambda: Fits(ratios=(math.nan, 1.0)),
        lambda: Fits(dbcache=math.nan),
        lambda: Fits(magcache=-1.0),
    ],
)
def test_what_cannot_have_been_measured_of_a_model_is_refused(made: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"must be finite numbers|use a number >= 0"):
        made()


def test_what_is_left_open_is_the_model_s_or_the_kind_s_and_nothing_stays_open() -> None:
    fits = Fits(TeaFit((1.0,), 0.4), (1.0, 1.1), "taylorseer,threshold=0.1")
    assert completed(cache_named("teacache"), fits) == CacheConfig("teacache", 0.4, warm_up=1)
    assert completed(cache_named("auto"), fits) == CacheConfig("dbcache", 0.1, 1, 0, 4, in_a_row=3, order=1)
    assert completed(cache_named("balanced"), fits) == CacheConfig("teacache", 0.4, warm_up=1, in_a_row=1)
    assert completed(cache_named("fast"), fits) == CacheConfig("teacache", 0.48, warm_up=1, in_a_row=2)
    assert completed(cache_named("dbcache,mask=fast"), fits, 9).mask == "111101001"
    for name in BY_NAME:
        once = completed(cache_named(name), fits, 9)
        assert completed(cache_named(str(once)), fits, 9) == once


def test_a_choice_that_leaves_no_block_to_skip_is_refused_where_the_network_is_known() -> None:
    assert asked_for("dbcache,first=2", Fits(), 9) == asked_for("dbcache,first=2", Fits(blocks=3), 9)
    with pytest.raises(RequestError, match=r"first=2 and last=1 leave no block to skip: the network has 3; .* most 2"):
        asked_for("dbcache,first=2,last=1", Fits(blocks=3), 9)


def test_who_names_no_cache_is_told_where_the_mask_of_all_such_requests_is_for_other_steps() -> None:
    usual = cache_named("dbcache,mask=10101")
    with pytest.raises(RequestError, match=r"is for 5 steps .* 4 times.*name no cache are drawn so; name one"):
        asked_for(None, Fits(), 4, usual)
    assert [asked_for(None, Fits(), evaluations, usual) for evaluations in (1, 5)] == [None, None]


def test_the_threshold_of_every_family_s_fit_is_one_that_can_skip() -> None:
    for spec in REGISTRY.specs():
        tea, lowest = spec.fits.tea, min(preset.times for preset in PRESETS.values())
        changes = [step / 1000 for step in range(1001)]
        least = min(sum(c * x**p for p, c in enumerate(reversed(tea.coefficients))) for x in changes)
        assert least < lowest * tea.threshold, f"{spec.family} never skips: its polynomial is never below {least:.2f}"


@pytest.mark.parametrize(
    ("mask", "steps", "digits"),
    [
        ("ultra", 4, "1101"),
        ("slow", 9, "111110111"),
        ("fast", 12, "111010010011"),
        ("medium", 20, "11111101100011000101"),
        ("slow", 28, "1111111101110011100110010001"),
        ("fast", 28, "1111110100010000100000100001"),
        ("slow", 50, "11111111111111111111110011111000111110001110001101"),
        ("ultra", 50, "11111110001100000000011000000000001100000000000001"),
        ("10110", 5, "10110"),
    ],
)
def test_a_word_for_a_mask_means_what_it_means_in_cache_dit(mask: str, steps: int, digits: str) -> None:
    assert step_mask(mask, steps) == digits  # those of words were computed with cache-dit 1.5.3, `steps_mask`


@pytest.mark.parametrize("word", MASKS)
def test_a_mask_has_a_digit_for_every_step_and_computes_the_first_and_the_last(word: str) -> None:
    for steps in range(4, 120):
        mask = step_mask(word, steps)
        assert len(mask) == steps
        assert mask[0] == mask[-1] == "1"


@pytest.mark.parametrize(("mask", "steps"), [("1011", 5), ("slow", 3)])
def test_a_mask_for_another_number_of_steps_is_refused(mask: str, steps: int) -> None:
    with pytest.raises(ConfigError, match="digit"):
        step_mask(mask, steps)


@pytest.mark.parametrize(
    ("backend", "settings", "text"),
    [
        ("cache_dit", {}, "dbcache"),
        ("tea_cache", {"rel_l1_thresh": 0.2}, "teacache,threshold=0.2"),
        (
            "cache_dit",
            {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 4, "residual_diff_threshold": 0.24},
            "dbcache,threshold=0.24,first=1,last=0,warm_up=4",
        ),
        (
            "cache_dit",
            {
                "max_cached_steps": -1,
                "max_continuous_cached_steps": 3,
                "enable_taylorseer": True,
                "taylorseer_order": 2,
            },
            "dbcache,most=1000000,in_a_row=3,order=2",
        ),
        ("cache_dit", {"scm_steps_mask_policy": "fast", "scm_steps_policy": "static"}, "dbcache,mask=fast,forced=true"),
        ("cache_dit", {"steps_computation_mask": [1, 0, 1], "enable_separate_cfg": True}, "dbcache,mask=101"),
        ("cache_dit", {"enable_taylorseer": False, "taylorseer_order": 1, "scm_steps_mask_policy": None}, "dbcache"),
        ("cache_dit", {"scm_compute_bins": [3, 1], "scm_cache_bins": [2, 1]}, "dbcache,mask=1110010"),
        (
            "cache_dit",
            {"scm_compute_bins": [1, 1], "scm_cache_bins": (4,), "scm_steps_policy": "static"},
            "dbcache,mask=100001,forced=true",
        ),
        ("cache_dit", {"scm_steps_mask_policy": "none", "scm_steps_policy": "dynamic"}, "dbcache"),
        ("none", {}, "none"),
        (
            "cache_dit",
            {
                "warmup_interval": 1,
                "enable_separate_cfg": None,
                "cfg_compute_first": False,
                "cfg_diff_compute_separate": True,
                "max_accumulated_residual_diff_threshold": 0,
                "force_refresh_step_hint": None,
                "force_refresh_step_policy": "once",
                "num_inference_steps": None,
            },
            "dbcache",
        ),
    ],
)
def test_documented_settings_are_honoured(backend: str, settings: dict[str, object], text: str) -> None:
    assert documented(backend, settings) == cache_named(text)


@pytest.mark.parametrize(
    ("backend", "settings", "said"),
    [
        ("cachedit", {}, "cache_backend='cachedit'"),
        ("cache_dit", {"steps_computation_mask": [1, 0], "scm_steps_mask_policy": "fast"}, "are 2 masks"),
        ("cache_dit", {"steps_computation_mask": [1], "scm_compute_bins": [1], "scm_cache_bins": [1]}, "are 2 masks"),
        ("cache_dit", {"scm_steps_policy": "static"}, "scm_steps_policy='static' .* give scm_steps_mask_policy"),
        ("cache_dit", {"scm_compute_bins": [3, 1]}, "scm_cache_bins=None .* both lists"),
        ("cache_dit", {"scm_compute_bins": [3, 0], "scm_cache_bins": [1]}, "scm_compute_bins"),
        ("cache_dit", {"scm_compute_bins": [10**9], "scm_cache_bins": [1]}, "10000 together"),
        ("cache_dit", {"scm_compute_bins": "31", "scm_cache_bins": [1]}, "scm_compute_bins='31'"),
        ("cache_dit", {"scm_steps_policy": "static", "steps_computation_policy": "dynamic"}, "and say two; leave one"),
        ("cache_dit", {"Fn_compute_block": 1}, "did you mean 'Fn_compute_blocks'"),
        ("cache_dit", {"rel_l1_thresh": 0.2}, "has no setting 'rel_l1_thresh'"),
        ("cache_dit", {"warmup_interval": 2}, "warmup_interval=2 is not supported"),
        ("cache_dit", {"enable_separate_cfg": False}, "never share what is remembered"),
        ("cache_dit", {"scm_steps_policy": "sometimes"}, "'dynamic' or 'static'"),
        ("cache_dit", {"steps_computation_mask": "1011"}, "not a list of ones and zeros"),
        ("cache_dit", {"steps_computation_mask": 7}, "not a list of ones and zeros"),
        ("cache_dit", {"Fn_compute_blocks": -1}, "at least 0"),
        ("cache_dit", {"enable_taylorseer": "yes"}, "not true or false"),
        ("tea_cache", {"coefficients": [1, 0]}, "omnimuse calibrate"),
    ],
)
def test_documented_settings_that_mean_something_else_are_refused_by_name(
    backend: str, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        documented(backend, settings)


@pytest.mark.parametrize("given", [[], 7, "1", ["1"], [True]])
def test_coefficients_of_teacache_are_taken_out_of_its_settings_and_are_numbers(given: object) -> None:
    settings = {"coefficients": [1, 0.5], "rel_l1_thresh": 0.2}
    assert polynomial("tea_cache", settings) == ((1.0, 0.5), {"rel_l1_thresh": 0.2})
    for backend in ("cache_dit", "unknown"):  # who does not take them refuses them by name
        assert polynomial(backend, settings) == ((), settings)
    with pytest.raises(ConfigError, match=r"coefficients=.* is not a list of numbers"):
        polynomial("tea_cache", {"coefficients": given})
