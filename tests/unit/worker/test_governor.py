"""The governor, with a clock and a crowd that the test moves; and the idle threads, with the real libgomp."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from omnimuse.core.machine import idle, waited, waited_here
from omnimuse.worker.governor import (
    EARLY,
    IN_VAIN,
    LONG_LOOK,
    LONGEST,
    PATIENCE,
    Governor,
    Signs,
    choose_waiting,
    govern,
)
from tests.fakes import Clock, ask, engine


@dataclass
class Machine:
    """Work that takes a while on a machine where threads wait for a core `share` of the time, when they are awake.

    It may have a crew: with a thread fewer, those that are left wait `left` of the time, and `idle` cores do nothing.
    """

    share: float = 0.0
    left: float = 0.0
    idle: float = 0.0
    has_crew: bool = False
    spared: bool = False
    seconds: float = 0.0
    waiting: float = 0.0
    free: float = 0.0
    spares: list[bool] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    waited: float = 0.0

    def __post_init__(self) -> None:
        signs = Signs(lambda: self.waited, lambda: self.free, self.clock)
        self.governor = Governor(self, self if self.has_crew else None, signs)

    def hold(self) -> None:
        self.held.append(True)

    def release(self) -> None:
        self.held.append(False)

    def spare(self) -> None:
        self.spared, self.seconds, self.waiting = True, 0.0, 0.0
        self.spares.append(True)

    def recall(self) -> None:
        self.spared, self.seconds, self.waiting = False, 0.0, 0.0
        self.spares.append(False)

    def step(self, seconds: float = 0.1) -> None:
        self.clock.now += seconds
        self.free += seconds * self.idle
        if self.spared:
            self.seconds += seconds
            self.waiting += seconds * self.left
        self.waited += seconds * (0.5 if self.governor.asleep else self.share)  # asleep they wake each other on a core

    def work(self, seconds: float, a_step: float = 0.1) -> None:
        for _ in range(round(seconds / a_step)):
            self.governor.watch(lambda: self.step(a_step))


def test_on_cores_of_their_own_threads_stay_awake() -> None:
    machine = Machine(share=0.05)
    machine.work(100)
    assert not machine.governor.asleep and machine.held == []


def test_in_a_crowd_threads_sleep_after_one_step() -> None:
    machine = Machine(share=0.5)
    machine.work(0.1)
    assert machine.governor.asleep and machine.held == [True]


def test_short_steps_are_looked_at_together() -> None:
    machine = Machine(share=0.5)
    machine.work(0.06, a_step=0.02)
    assert not machine.governor.asleep
    machine.work(0.04, a_step=0.02)
    assert machine.governor.asleep


def test_when_the_crowd_has_gone_threads_wake_again_and_stay_awake() -> None:
    machine = Machine(share=0.5)
    machine.work(0.1)
    machine.share = 0.0
    machine.work(PATIENCE - 0.2)
    assert machine.governor.asleep
    machine.work(100)
    assert not machine.governor.asleep and machine.held == [True, False]


def test_while_the_crowd_stays_threads_try_it_awake_ever_more_seldom() -> None:
    machine = Machine(share=1.0)
    machine.work(1000)
    tries = machine.held.count(False)
    assert 1000 / LONGEST <= tries <= 1000 / LONGEST + 6
    assert machine.governor.asleep


def test_a_crowd_that_comes_late_finds_the_first_patience_again() -> None:
    machine = Machine(share=1.0)
    machine.work(500)
    machine.share = 0.0
    machine.work(2 * LONGEST + 1)
    assert not machine.governor.asleep
    machine.share = 1.0
    machine.work(0.1)
    machine.share = 0.0
    machine.work(PATIENCE + 0.2)
    assert not machine.governor.asleep


def test_time_between_requests_is_no_work() -> None:
    machine = Machine(share=0.5)
    machine.work(0.1)
    machine.clock.now += 3600
    machine.work(0.1)
    assert machine.governor.asleep


def test_each_turn_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(share=0.5)
    with caplog.at_level(logging.INFO, "omnimuse"):
        machine.work(0.1)
        machine.work(PATIENCE + 0.1)
    assert [record.getMessage() for record in caplog.records][:2] == [
        "threads wait for each other asleep, since others want the cores (threads waited 0.50 s in a second)",
        "threads wait for each other awake, to see whether the cores are free",
    ]


def test_beside_a_neighbour_a_thread_is_spared_and_stays_so_while_nothing_is_free() -> None:
    machine = Machine(share=0.5, has_crew=True)
    machine.work(0.1)
    assert machine.spared and machine.governor.asleep
    machine.work(PATIENCE - 0.2)
    assert machine.spared and machine.spares == [True] * len(machine.spares)
    machine.work(1000)
    assert machine.spares.count(False) <= 1000 / LONGEST + 6, "it tries with all of them ever more seldom"


def test_where_those_that_are_left_wait_as_well_all_threads_are_called_back() -> None:
    machine = Machine(share=0.5, left=0.4, has_crew=True)
    machine.work(0.1)
    assert machine.spared
    machine.work(LONG_LOOK)
    assert not machine.spared and machine.governor.asleep


def test_what_was_no_help_is_tried_again_seldom_and_soon_where_the_crowd_has_changed() -> None:
    machine = Machine(share=1.0, left=0.5, has_crew=True)
    machine.work(2 * IN_VAIN)
    assert machine.spares.count(True) == 2
    machine.share = 0.0
    machine.work(2 * LONGEST)
    machine.share, machine.left = 0.5, 0.0
    machine.work(0.1)
    assert machine.spared


@pytest.mark.parametrize(
    "crowd",
    [{"has_crew": True}, {"has_crew": True, "left": 0.4}, {}],
    ids=["one is spared", "none is, since those that were left waited", "none can be"],
)
def test_a_core_that_has_become_free_wakes_them_soon_and_calls_all_back(crowd: dict[str, Any]) -> None:
    machine = Machine(share=0.5, **crowd)
    machine.work(LONG_LOOK + 0.2)
    assert machine.governor.asleep
    machine.share, machine.idle = 0.0, 1.0
    machine.work(PATIENCE * EARLY)
    assert not machine.spared and not machine.governor.asleep
    machine.work(100)
    assert machine.held == [True, False]


def test_after_a_long_crowd_a_whole_core_that_is_free_wakes_them_as_soon_as_after_a_short_one() -> None:
    machine = Machine(share=0.5, has_crew=True)
    machine.work(1000)
    assert machine.governor.asleep
    machine.share, machine.idle = 0.0, 1.0
    machine.work(PATIENCE)
    assert not machine.governor.asleep


def test_a_neighbour_that_comes_and_goes_does_not_make_them_come_and_go() -> None:
    machine = Machine(share=0.5, idle=0.6, has_crew=True)
    machine.work(1000)
    assert machine.spares.count(False) <= 1000 / (EARLY * LONGEST) + 6


def test_an_engine_works_under_its_governor_and_gives_what_it_gives_without() -> None:
    machine, outputs = Machine(share=1.0), []
    for governor in (None, machine.governor):
        subject = engine()
        subject.governor = governor
        subject.submit(subject.make_request(ask(seed=3)))
        events = []
        while not subject.idle:
            machine.clock.now += 0.1
            events += subject.tick()
        outputs.append(events[-1].result.output)
    assert torch.equal(*outputs)


def test_what_somebody_has_chosen_is_left_alone() -> None:
    cpu, chosen = torch.device("cpu"), choose_waiting(torch.device("cpu"), 2, "passive")
    assert (chosen.value, chosen.reason) == ("passive", "OMP_WAIT_POLICY says so")
    assert govern(chosen, 2) is None
    for alone in (choose_waiting(cpu, 1, ""), choose_waiting(torch.device("meta"), 2, "")):
        assert alone.value == "unwatched" and govern(alone, 1) is None
    assert (waited() is None) == (choose_waiting(cpu, 2, "").value == "unwatched")


MEETINGS = 400
PROGRAM = f"""
import os, resource, time, torch
from omnimuse.core.machine import cores
from omnimuse.worker.governor import IdleTeams
threads = max(2, cores())
torch.set_num_threads(threads)
numbers = torch.zeros(32768 * threads)
def sleeps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range({MEETINGS}):
        numbers.add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before
def tasks():
    return len(os.listdir("/proc/self/task"))
teams = IdleTeams(threads, cores())
sleeps()
awake, alone = sleeps(), tasks()
teams.hold()
asleep = sleeps()
teams.release()
while tasks() > alone:
    time.sleep(0.001)
print(awake, asleep, sleeps(), torch.get_num_threads() == threads, numbers.eq({4 * MEETINGS}).all().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch computes with on Linux")
def test_idle_teams_make_threads_sleep_at_meetings_and_leave_their_number_alone() -> None:
    """Counted by the kernel: who sleeps gives its core up. With one core threads sleep anyway. libgomp has them sleep
    until the threads of idle teams are gone, which on a busy machine takes its time.
    """
    unchosen = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    spinning = unchosen | {"GOMP_SPINCOUNT": "10000000000"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=spinning, capture_output=True, text=True, check=True)
    awake, asleep, again, same_number, right = done.stdout.split()
    assert (same_number, right) == ("True", "True")
    assert int(asleep) > MEETINGS / 2
    assert len(os.sched_getaffinity(0)) == 1 or max(int(awake), int(again)) < int(asleep) / 2


def test_the_kernel_is_asked_how_long_threads_waited() -> None:
    first, second = waited(), waited()
    assert first is None or (second is not None and second >= first >= 0)


def test_the_kernel_is_asked_how_long_a_thread_waited_and_cores_were_idle() -> None:
    assert waited_here() <= (waited() or 0.0) + 1e-9
    first = idle()
    assert 0 <= first <= idle()
