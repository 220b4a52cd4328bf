"""What writes, speaks or answers tells on a real accelerator what it tells on the CPU, in float32: the same words, and
sounds and pictures that are as near as sums in another order make them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import OffloadConfig
from omnimuse.core.output import Result
from omnimuse.engine.engine import Engine
from tests.checkpoints.adapters import telling
from tests.checkpoints.bagel import answers
from tests.checkpoints.families import ALLROUNDERS
from tests.distance import distance
from tests.gpu.conftest import Make, engines
from tests.gpu.test_families import FAR, FAST
from tests.invariants import test_device_telling
from tests.invariants.conftest import Subject, drain, nap, of, results, submit, with_params
from tests.invariants.test_device_allround import asked
from tests.invariants.test_device_telling import Teller, asks_of, haltingly, rested, told

teller = test_device_telling.teller


@pytest.fixture
def telling_on(teller: Teller, folder: Path) -> Iterator[Make]:
    """Of what tells."""
    with engines(folder) as make:
        yield make


def parts_of(result: Result) -> dict[str, Sequence[Tensor]]:
    return {name: list(made) for name, made in result.tensors.items()}


def expect_told(found: Sequence[Result], expected: Sequence[Result]) -> None:
    for ours, plain in zip(found, expected, strict=True):
        assert [note.tokens for note in ours.written] == [note.tokens for note in plain.written]
        there, here = parts_of(ours), parts_of(plain)
        assert there.keys() == here.keys()
        for name, made in here.items():
            for mine, other in zip(there[name], made, strict=True):
                assert torch.isfinite(mine.float()).all()
                assert distance(mine.float(), other.float()) < FAR, name


def halting(engine: Engine, teller: Teller, folder: Path) -> Result:
    """What one is told who waits after every few ticks, and wears an adapter where names of its files fit one."""
    plain, adapter = asks_of(teller)[0], telling(folder)
    return haltingly(engine, plain if adapter is None else with_params(plain, loras=[f"{adapter}:0.8"]))


@pytest.mark.parametrize("offload", ["none", "components", "layers"])
def test_an_accelerator_tells_what_the_cpu_tells(teller: Teller, telling_on: Make, offload: str) -> None:
    here, there = telling_on("cpu", schedule=FAST), telling_on(schedule=FAST, offload=OffloadConfig(offload))  # type: ignore[arg-type]
    expect_told(told(there, asks_of(teller)), told(here, asks_of(teller)))


def test_who_waits_and_wears_an_adapter_is_told_what_the_cpu_tells(
    teller: Teller, telling_on: Make, folder: Path
) -> None:
    found, expected = (halting(telling_on(*device, schedule=FAST), teller, folder) for device in ((), ("cpu",)))
    expect_told([found], [expected])


def test_who_has_begun_when_weights_leave_the_accelerator_is_told_what_the_cpu_tells(
    teller: Teller, telling_on: Make
) -> None:
    found = rested(telling_on(schedule=FAST), asks_of(teller), nap)
    expect_told(found, rested(telling_on("cpu", schedule=FAST), asks_of(teller), lambda engine: None))


def test_sounds_that_come_in_pieces_are_what_the_cpu_tells(teller: Teller, telling_on: Make) -> None:
    asks = [replace(ask, chunks=True) for ask in asks_of(teller)]
    expect_told(told(telling_on(schedule=FAST), asks), told(telling_on("cpu", schedule=FAST), asks))


@of(ALLROUNDERS)
def test_what_draws_and_writes_says_of_pictures_what_the_published_code_says(subject: Subject, engine_on: Make) -> None:
    engine = engine_on(schedule=FAST)
    ids = submit(engine, *asked())
    written = [note for result in results(engine, drain(engine), ids) for note in result.written]
    assert [list(note.tokens) for note in written] == answers()
