"""Fault points: what strikes, when, and what a wrong text says."""

from __future__ import annotations

import pytest

from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.deploy.faults import PAUSE, Faults


def test_without_faults_nothing_happens() -> None:
    faults = Faults.read("")
    assert not any(faults.reach("worker.step", step) for step in range(5))


def test_a_fault_strikes_once_at_its_number_and_in_the_first_life_only() -> None:
    faults = Faults.read("worker.step:3:nan")
    assert [faults.reach("worker.step", step) for step in (1, 2, 3, 4, 3)] == [False, False, True, False, False]
    assert not Faults.read("worker.step:3:nan", first=False).reach("worker.step", 3)


def test_a_fault_with_a_word_strikes_every_prompt_that_has_it() -> None:
    faults = Faults.read("worker.encode:1:oom, worker.step:2:fail:bad", first=False)
    assert not faults.reach("worker.step", 2, "a good one")
    for _ in range(2):
        with pytest.raises(ModelError):
            faults.reach("worker.step", 2, "a bad one")
    assert not faults.reach("worker.encode", 1, "a bad one")


def test_a_pause_goes_on_as_if_nothing_had_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("omnimuse.deploy.faults.time.sleep", slept.append)
    assert not Faults.read("worker.step:3:pause").reach("worker.step", 3)
    assert slept == [PAUSE]


def test_points_without_a_number_are_counted() -> None:
    faults = Faults.read("store.accept:2:oom")
    assert not faults.reach("store.accept")
    with pytest.raises(MemoryError):
        faults.reach("store.accept")


@pytest.mark.parametrize(
    "text", ["worker.step", "worker.step:3", "worker.stop:3:kill", "worker.step:0:kill", "worker.step:3:die", "a:b:c:d"]
)
def test_a_fault_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="point:number:action"):
        Faults.read(text)


def test_only_steps_have_values_that_can_be_undefined() -> None:
    with pytest.raises(ConfigError, match="nan"):
        Faults.read("worker.encode:1:nan")
