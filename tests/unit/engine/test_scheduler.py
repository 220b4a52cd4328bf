"""Who runs next: order, fairness, budgets, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import CapacityError
from omnimuse.core.request import Door, Request
from omnimuse.engine.scheduler import Scheduler
from tests.fakes import SPEC, ask

DOOR = Door.of(SPEC, {}, "fake")


def request(name: str, **choices: object) -> Request:
    return replace(DOOR.make_request(ask(**choices), 0.0, 1), id=name)


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(ScheduleConfig(**limits))


def names(chosen: list[str]) -> list[str]:
    return [state_id.split("/")[0] for state_id in chosen]


def test_higher_priority_runs_first_then_the_earlier_arrival() -> None:
    queue = scheduler()
    for name, priority in (("a", 0), ("b", 5), ("c", 0)):
        queue.add(request(name, priority=priority), 1)
    admitted, run = queue.pick()
    assert [r.id for r in admitted] == ["b", "a", "c"]
    assert names(run) == ["b", "a", "c"]


def test_a_nearer_deadline_runs_first_among_equals() -> None:
    queue = scheduler()
    queue.add(request("late", timeout=9.0), 1)
    queue.add(request("soon", timeout=1.0), 1)
    queue.add(request("never"), 1)
    assert names(queue.pick()[1]) == ["soon", "late", "never"]


def test_a_tick_stays_within_its_token_budget_but_never_stands_still() -> None:
    queue = scheduler(tick_tokens=10)
    queue.add(request("big"), 50)
    queue.add(request("small"), 1)
    assert names(queue.pick()[1]) == ["big"]


def test_two_tenants_share_ticks_however_many_requests_one_of_them_sends() -> None:
    queue = scheduler(tick_tokens=1)
    for index in range(8):
        queue.add(request(f"greedy{index}", tenant="greedy"), 1)
    queue.add(request("modest", tenant="modest"), 1)
    served = [names(queue.pick()[1])[0].startswith("modest") for _ in range(10)]
    assert sum(served) == 5


def test_a_tenant_that_was_away_earns_no_credit() -> None:
    queue = scheduler(tick_tokens=1)
    queue.add(request("steady", tenant="steady"), 1)
    for _ in range(100):
        queue.pick()
    queue.add(request("fresh", tenant="fresh"), 1)
    served = [names(queue.pick()[1])[0] for _ in range(10)]
    assert served.count("steady") == 5


def test_a_full_queue_refuses_with_a_capacity_error() -> None:
    queue = scheduler(max_queue=2)
    queue.add(request("a"), 1)
    queue.add(request("b"), 1)
    with pytest.raises(CapacityError, match="queue is full"):
        queue.add(request("c"), 1)


def test_no_more_outputs_run_than_allowed_and_the_rest_follow() -> None:
    queue = scheduler(max_running=3)
    queue.add(request("a", num_outputs_per_prompt=2), 1)
    queue.add(request("b", num_outputs_per_prompt=2), 1)
    assert [r.id for r in queue.pick()[0]] == ["a"]
    queue.finished("a/0")
    assert [r.id for r in queue.pick()[0]] == ["b"]


def test_a_request_larger_than_every_bound_runs_alone() -> None:
    queue = scheduler(max_running=2, running_tokens=10)
    queue.add(request("huge", num_outputs_per_prompt=5), 100)
    queue.add(request("next"), 1)
    admitted, _ = queue.pick()
    assert [r.id for r in admitted] == ["huge"]


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    queue = scheduler(max_running=2)
    queue.add(request("first"), 1)
    queue.pick()
    queue.add(request("wide", num_outputs_per_prompt=2), 1)
    queue.add(request("narrow"), 1)
    assert queue.pick()[0] == [], "narrow must wait behind wide"


def test_paused_requests_take_no_part() -> None:
    queue = scheduler()
    queue.add(request("a"), 1)
    queue.add(request("b"), 1)
    queue.pick()
    queue.entries["a"].paused = True
    assert names(queue.pick()[1]) == ["b"]


def test_requests_past_their_deadline_are_named() -> None:
    queue = scheduler()
    queue.add(request("a", timeout=1.0), 1)
    assert queue.expired(0.5) == []
    assert queue.expired(1.5) == ["a"]
