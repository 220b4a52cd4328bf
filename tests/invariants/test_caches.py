"""Step caches, for every registered pipeline: off changes no bit, and a request that skips gets what it gets alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnimuse.core.caches import CacheConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Ask
from omnimuse.engine.calibrate import calibrate, step_caches
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME, write_fits
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, of, outputs, run, submit, tick, with_params
from tests.skipping import EXPERTS, counting, enough, measured

pytestmark = pytest.mark.crossed

OFF = ("teacache,threshold=0", "dbcache,threshold=0", "taylorseer,threshold=0,last=0", "none")
SKIPPING = (
    "teacache,threshold=1e6",
    "dbcache,threshold=9,warm_up=2,in_a_row=2",
    "taylorseer,threshold=9,warm_up=2",
    "magcache,threshold=9,warm_up=1",
    "dbcache,first=0,forced=true,mask=MASK",
)
"""One of each kind, which leaves out a step or more of what has `enough`."""


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def asks_of(subject: Subject, shared: Engine, *choices: str) -> list[Ask]:
    """A request for every choice, over the family's wishes in turn."""
    found = []
    for number, choice in enumerate(choices):
        ask = subject.ask(number % len(subject.family.wishes), **enough(subject.family))
        found.append(choosing(shared, ask, choice))
    return found


def choosing(engine: Engine, ask: Ask, choice: str) -> Ask:
    """The ask with that step cache, in which a MASK lets every third evaluation be skipped."""
    mask = ("110" * 9)[: engine.make_request(ask).evaluations]
    return with_params(ask, cache=choice.replace("MASK", mask))


def test_a_step_cache_at_threshold_zero_is_off_bit_for_bit_in_company(
    subject: Subject, shared: Engine, engine_with: Callable[..., Engine]
) -> None:
    asks = asks_of(subject, shared, *OFF)
    plain = [with_params(ask, cache=None) for ask in asks]
    expected = run(shared, *plain)
    for wanted, found in zip(expected, run(shared, *asks), strict=True):
        assert torch.equal(found, wanted)
    engine = engine_with(cache=CacheConfig("dbcache", 0.0))
    for wanted, found in zip(expected, run(engine, *plain), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.shows("TeaCache", "company")
@pytest.mark.shows("DBCache", "company")
@pytest.mark.shows("TaylorSeer", "company")
@pytest.mark.shows("MagCache", "company")
@pytest.mark.shows("step masks", "company")
def test_requests_with_all_kinds_of_step_caches_share_ticks_and_get_what_they_get_alone(
    subject: Subject, shared: Engine
) -> None:
    asks = asks_of(subject, measured(shared), *SKIPPING, "none")
    plain = run(shared, *(with_params(ask, cache=None) for ask in asks))
    alone = [run(shared, ask)[0] for ask in asks]
    first, *others = submit(shared, asks[0])
    events = shared.tick() + shared.tick()  # the others are some steps behind
    others = submit(shared, *asks[1:])
    events += drain(shared)
    found = [outputs(events, id_) for id_ in (first, *others)]
    for exact, expected, drawn, ask in zip(plain, alone, found, asks, strict=True):
        assert close(drawn, expected)
        assert close(drawn, exact) == (ask.params.cache == "none"), f"{ask.params.cache} must skip steps"


@pytest.mark.parametrize("network", ["transformer", "transformer_2"])
@of([family for family in FAMILIES if enough(family) is EXPERTS])
def test_each_of_two_experts_skips_steps_by_every_kind_of_cache(subject: Subject, shared: Engine, network: str) -> None:
    asks = asks_of(subject, measured(shared), *SKIPPING)
    with counting(shared, network) as skipped:
        run(shared, *asks)
    assert len(skipped) == len(asks) and all(skipped.values())


@of([family for family in FAMILIES if enough(family) is EXPERTS])
def test_each_of_two_experts_is_measured_and_judged_by_its_own_steps(subject: Subject, tmp_path: Path) -> None:
    alone = replace(subject, folder=shutil.copytree(subject.folder, tmp_path / "model"))
    engine = start(alone.config())
    fits = calibrate(engine, [subject.ask(0, **EXPERTS)], 1e6).fits
    engine.close()
    write_fits(alone.folder / NAME, fits, {})
    engine = start(alone.config())
    found = {name: (cache.fits.tea.coefficients, cache.fits.ratios) for name, cache, _ in step_caches(engine)}
    engine.close()
    assert found == {name: (own.tea.coefficients, own.ratios) for name, own in fits.experts}
    first, second = found.values()
    assert first != second and len(first[1]) == len(second[1]) == 3


def test_pausing_a_request_that_skips_and_resuming_it_changes_no_bit(subject: Subject, shared: Engine) -> None:
    [ask] = asks_of(subject, shared, "taylorseer,threshold=9,warm_up=2")
    [expected] = run(shared, ask)
    [id_] = submit(shared, ask)
    with counting(shared) as skipped:
        while not skipped.total():
            tick(shared)
    shared.pause(id_)
    shared.tick()
    assert shared.idle, "it is parked"
    shared.resume(id_)
    assert torch.equal(outputs(drain(shared), id_), expected)


def test_a_request_with_a_mask_of_another_length_is_refused_before_it_starts(subject: Subject, shared: Engine) -> None:
    [ask] = asks_of(subject, shared, "dbcache,mask=10")
    with pytest.raises(RequestError, match=r"give \d digits") as refused:
        shared.make_request(ask)
    assert refused.value.param == "cache"
