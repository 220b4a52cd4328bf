"""What people do beside drawing, on a real accelerator as on the CPU: adapters, previews, pauses and step caches at
once, and weights that leave and come back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omnimuse.core.config import CacheConfig
from omnimuse.engine.engine import Engine
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.gpu.conftest import TESTED
from tests.gpu.test_families import FAST, asks, expect_alike
from tests.invariants import test_lora
from tests.invariants.conftest import Subject, drain, nap, of, outputs, run, submit, tick
from tests.invariants.test_caches import SKIPPING, asks_of
from tests.invariants.test_device import everything, interrupted
from tests.skipping import counting, measured

Make = Callable[..., Engine]
EVERY = of((*FAMILIES, *ALLROUNDERS))

adapters = test_lora.adapters


@EVERY
def test_all_at_once_is_drawn_as_by_the_cpu(subject: Subject, engine_on: Make, adapters: tuple[Path, Path]) -> None:
    """What requests begin with, several outputs, adapters, previews, a step cache and a pause."""
    wanted, cache = everything(subject, adapters), CacheConfig("teacache", 1e6)
    here, there = (engine_on(device, schedule=FAST, cache=cache) for device in ("cpu", TESTED))
    with counting(there) as skipped:
        found = interrupted(there, wanted)
    assert all(skipped.values()), "each skips a step"
    expect_alike(found, interrupted(here, wanted), subject)


@EVERY
def test_who_has_begun_when_weights_leave_the_accelerator_is_drawn_as_by_the_cpu(
    subject: Subject, engine_on: Make
) -> None:
    wanted = asks(subject)
    expected, engine = run(engine_on("cpu", schedule=FAST), *wanted), engine_on(schedule=FAST)  # type: ignore[arg-type]
    ids = submit(engine, *wanted)  # type: ignore[arg-type]
    events = [event for _ in range(2) for event in tick(engine)]
    nap(engine)
    events += drain(engine)
    expect_alike([outputs(events, id_) for id_ in ids], expected, subject)


@EVERY
def test_an_accelerator_skips_what_the_cpu_skips(subject: Subject, engine_on: Make) -> None:
    """By every kind of step cache, where no number decides by a hair."""
    here, there = (measured(engine_on(device, schedule=FAST)) for device in ("cpu", TESTED))
    wanted = asks_of(subject, here, *SKIPPING)
    with counting(here) as expected_skips, counting(there) as skips:
        expected, found = run(here, *wanted), run(there, *wanted)
    assert sorted(skips.values()) == sorted(expected_skips.values()) and any(skips.values())
    expect_alike(found, expected, subject)
