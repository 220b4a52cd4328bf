"""The number of threads has one source: the first of those who may say something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnimuse import Config, ModelConfig, explain
from omnimuse.core.config import Choice, HostConfig
from omnimuse.core.environment import SPINS, Environment
from omnimuse.core.errors import ConfigError
from omnimuse.core.machine import cores, whole_cores
from omnimuse.engine.local import start
from omnimuse.worker.threads import Room, choose_threads

FULL = Room(cores=8, quota=3.5, omp_threads=5, torch_threads=6)


@pytest.mark.parametrize(
    ("asked", "room", "count", "why"),
    [
        (2, FULL, 2, "asked for"),
        (None, FULL, 6, "torch was set so in this process"),
        (None, Room(8, 3.5, 5), 5, "OMP_NUM_THREADS says so"),
        (None, Room(8, 3.5), 3, "the container may use 3.5 of 8 cores"),
        (None, Room(8, 0.5), 1, "the container may use 0.5 of 8 cores"),
        (None, Room(2, 16.0), 2, "this process may use 2 cores"),
        (None, Room(1), 1, "this process may use 1 core"),
    ],
)
def test_the_first_who_says_something_decides(asked: int | None, room: Room, count: int, why: str) -> None:
    chosen, choice = choose_threads(HostConfig(asked), room)
    assert (chosen, choice.value, choice.reason) == (count, str(count), why)


def test_processes_share_what_there_is_and_each_has_one_at_least() -> None:
    count, choice = choose_threads(HostConfig(processes=3), Room(8))
    assert (count, choice.reason) == (2, "8 shared by 3 processes: this process may use 8 cores")
    assert choose_threads(HostConfig(threads=6, processes=2), FULL)[0] == 3
    assert choose_threads(HostConfig(processes=5), Room(2))[0] == 1


def test_only_a_setting_that_torch_would_not_take_by_itself_is_somebodys_choice() -> None:
    there = Room.here()
    own = there.omp_threads or cores()
    assert there.torch_threads is None and Room.here(own).torch_threads is None
    assert Room.here(whole_cores()).torch_threads is None  # what MKL takes where a core has two threads
    assert Room.here(own + 1000).torch_threads == own + 1000


@pytest.mark.parametrize("wrong", [0, -1, 5000])
def test_a_number_that_makes_no_sense_is_refused(wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"threads={wrong} is not allowed; use a whole number from 1 to 1024"):
        HostConfig(threads=wrong)


def told(environment: dict[str, str]) -> str:
    """What a process with this environment says of its threads, or why it cannot."""
    program = (
        "from omnimuse.worker.threads import *\n"
        "try: print(*choose_threads(HostConfig(), Room.here())[1].__dict__.values())\n"
        "except Exception as error: print(error)"
    )
    without = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], env=without | environment, capture_output=True, text=True)
    return done.stdout.strip()


def test_omp_num_threads_is_honoured_and_what_is_no_number_is_refused() -> None:
    assert told({"OMP_NUM_THREADS": "3"}) == "place threads 3 OMP_NUM_THREADS says so"
    assert told({"OMP_NUM_THREADS": "4,2"}) == "place threads 4 OMP_NUM_THREADS says so"
    assert "OMP_NUM_THREADS" not in told({}) and "OMP_NUM_THREADS" not in told({"OMP_NUM_THREADS": ""})
    assert told({"OMP_NUM_THREADS": "many"}).startswith("OMP_NUM_THREADS=many is not a number of threads")
    assert told({"OMP_NUM_THREADS": "0"}) == "OMP_NUM_THREADS=0 is not allowed; use a whole number from 1 to 1024"


def test_an_engine_computes_with_the_threads_it_was_given_and_puts_the_setting_back(z_image_folder: Path) -> None:
    before = torch.get_num_threads()
    config = Config(
        ModelConfig(str(z_image_folder), dtype="float32", device="cpu"), host=HostConfig(threads=before + 1)
    )
    for rows in (
        explain(str(z_image_folder), config=config),
        explain(str(z_image_folder), device="cpu", threads=before + 1),
    ):
        assert Choice("place", "threads", str(before + 1), "asked for") in rows
    assert torch.get_num_threads() == before
    engine = start(config)
    assert torch.get_num_threads() == before + 1
    engine.close()
    assert torch.get_num_threads() == before


def test_threads_of_workers_spin_for_a_bounded_time_unless_somebody_has_chosen_how_they_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert Environment.for_workers()["GOMP_SPINCOUNT"] == SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert Environment.for_workers()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in Environment.for_workers()
