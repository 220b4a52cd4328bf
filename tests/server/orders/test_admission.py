"""Admission by count, by measured time and by tenant, on a clock that the tests move."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.errors import CapacityError, DeadlineError
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.request import Request
from omnimuse.server.options import ServeOptions
from omnimuse.server.orders.admission import Admission, Ticket, cost

UNIT = DiffusionParams(width=1000, height=1000, num_inference_steps=1)
"""Costs exactly one unit."""


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ask(steps: int = 1, tenant: str = "", deadline: float | None = None) -> Request:
    """A request of one megapixel and so many steps: as many cost units."""
    params = replace(UNIT, num_inference_steps=steps)
    return Request("id", "a ring", None, params, FamilyParams(), tenant=tenant, deadline=deadline)


def admission(clock: Clock, max_queue: int = 256, max_wait: float = 600.0, width: int = 1) -> Admission:
    """An admission that has measured nothing yet."""
    options = ServeOptions(Path("unused"), "m", max_queue=max_queue, max_wait=max_wait)
    return Admission(options, width, clock)


def measured(clock: Clock, pace: float, max_queue: int = 256, max_wait: float = 600.0, width: int = 1) -> Admission:
    """An admission that has seen one request of one unit take `pace` seconds."""
    made = admission(clock, max_queue, max_wait, width)
    with made.enter(ask()):
        clock.now += pace
    return made


def test_a_deadline_in_times_alone_is_known_once_the_speed_is() -> None:
    clock = Clock()
    asked = replace(ask(steps=4), times=3.0)
    assert admission(clock).promised(asked) is asked
    assert measured(clock, 0.5).promised(asked).deadline == pytest.approx(clock.now + 3.0 * 4 * 0.5)


def test_a_refusal_for_the_work_of_others_is_told_and_one_for_the_own_is_not() -> None:
    clock = Clock()
    desk, missed = measured(clock, 1.0), list[str]()
    desk.missed = lambda: missed.append("one")
    with desk.enter(ask(steps=10, deadline=clock.now + 11.0)):
        with pytest.raises(DeadlineError):  # those before it take too long
            desk.enter(ask(steps=10, deadline=clock.now + 12.0))
        with pytest.raises(DeadlineError):  # it would make the other late
            desk.enter(ask(steps=5, deadline=clock.now + 6.0))
        assert len(missed) == 2
        with pytest.raises(DeadlineError):
            desk.enter(ask(steps=10, deadline=clock.now + 9.0))
        clock.now += 10.0
    with pytest.raises(DeadlineError):
        desk.enter(ask(steps=10, deadline=clock.now + 9.0))
    assert len(missed) == 2


# -- cost ----------------------------------------------------------------------------------------------------------


def test_cost_is_megapixels_times_frames_times_steps_times_outputs_times_branches() -> None:
    params = DiffusionParams(
        width=500, height=400, num_frames=5, num_inference_steps=7, num_outputs_per_prompt=3, guidance_scale=4.0
    )
    guided = Request("id", "", None, params, FamilyParams(), branches=("positive", "negative"))
    assert cost(guided) == pytest.approx(0.2 * 5 * 7 * 3 * 2)
    assert cost(replace(guided, branches=("positive",))) == pytest.approx(0.2 * 5 * 7 * 3)
    assert cost(replace(guided, more=6)) == pytest.approx(0.2 * 5 * 13 * 3 * 2)


def test_a_request_whose_solver_evaluates_twice_a_step_is_expected_to_take_as_long_as_it_does() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    twice = replace(ask(steps=10), more=9)
    assert door.seconds(twice) == pytest.approx(19)
    with pytest.raises(DeadlineError, match=r"about 19\.0 s"):
        door.enter(replace(twice, deadline=clock.now + 15))
    with door.enter(twice) as ticket:
        for done in range(1, 20):  # it is told of every evaluation
            clock.now += 1.0
            ticket.step()
            assert door.load().cost == pytest.approx(19 - done)
    assert door.load().seconds_per_cost == pytest.approx(1.0)


def test_steps_that_are_told_now_and_then_or_twice_count_once_each() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    with door.enter(
        replace(ask(steps=10), params=replace(UNIT, num_inference_steps=10, num_outputs_per_prompt=2))
    ) as ticket:
        for output, stage, step, left in (
            (0, "denoise", 4, 16),
            (1, "denoise", 10, 6),
            (0, "denoise", 2, 6),
            (0, "denoise", 5, 5),
        ):
            ticket.reach(output, stage, step)
            assert door.load().cost == pytest.approx(left)


# -- count ---------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_takes_on_again_when_a_request_has_ended() -> None:
    full = admission(Clock(), max_queue=2)
    first, _ = full.enter(ask()), full.enter(ask())
    with pytest.raises(CapacityError, match="2 unfinished requests") as refused:
        full.enter(ask())
    assert refused.value.retry_after == 2.0
    first.close(served=False)
    full.enter(ask())
    assert full.load().count == 2


def test_a_ticket_is_left_once_whatever_happens() -> None:
    door = admission(Clock())
    with pytest.raises(KeyError), door.enter(ask()) as ticket:
        raise KeyError
    ticket.close(served=True)
    ticket.step()
    load = door.load()
    assert (load.count, load.cost, load.tenants, load.seconds_per_cost) == (0, 0.0, {}, None)


def test_what_was_accepted_earlier_is_never_refused() -> None:
    door = admission(Clock(), max_queue=1)
    for _ in range(3):
        door.adopt(ask())
    assert door.load().count == 3
    with pytest.raises(CapacityError):
        door.enter(ask())


# -- time ----------------------------------------------------------------------------------------------------------


def test_nothing_is_refused_on_time_before_a_speed_was_measured() -> None:
    clock = Clock()
    door = admission(clock, max_wait=1.0)
    for _ in range(50):
        door.enter(ask(steps=10_000, deadline=clock.now + 1), patience=1)
    assert door.load().expected_wait is None
    assert door.seconds(ask()) is None


def test_a_deadline_that_has_passed_is_refused_even_so() -> None:
    clock = Clock()
    with pytest.raises(DeadlineError):
        admission(clock).enter(ask(deadline=clock.now - 1))


def test_speed_is_learnt_from_finished_work() -> None:
    clock = Clock()
    door = measured(clock, pace=2.0)
    assert door.load().seconds_per_cost == pytest.approx(2.0)
    assert door.seconds(ask(steps=5)) == pytest.approx(10.0)


def test_work_that_would_start_too_late_is_refused_with_the_time_to_come_back() -> None:
    clock = Clock()
    door = measured(clock, pace=2.0, max_wait=30.0)
    door.enter(ask(steps=20))
    with pytest.raises(CapacityError, match="about 40 s of work are ahead") as refused:
        door.enter(ask(steps=20))
    assert refused.value.retry_after == pytest.approx(10.0)


@pytest.mark.parametrize(("deadline", "patience"), [(29.0, None), (None, 29.0), (100.0, 29.0), (29.0, 100.0)])
def test_a_request_that_cannot_make_its_deadline_is_refused_at_once(
    deadline: float | None, patience: float | None
) -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    door.enter(ask(steps=10, deadline=clock.now + 15))
    until = None if deadline is None else clock.now + deadline
    with pytest.raises(DeadlineError, match=r"about 30\.0 s \(10\.0 s of them waiting\)"):
        door.enter(ask(steps=20, deadline=until), patience)
    door.enter(ask(steps=18, deadline=until), patience)


def test_a_deadline_waits_for_nearer_ones_only() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    door.enter(ask(steps=50, deadline=clock.now + 500))
    door.enter(ask(steps=10, deadline=clock.now + 12))
    with pytest.raises(DeadlineError, match=r"10\.0 s of them waiting"):
        door.enter(ask(steps=10, deadline=clock.now + 19))
    door.enter(ask(steps=10, deadline=clock.now + 21))


def test_no_deadline_that_was_accepted_is_given_up_for_a_nearer_one() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    door.enter(ask(steps=50, deadline=clock.now + 55))
    with pytest.raises(DeadlineError, match="make a request late that was accepted before"):
        door.enter(ask(steps=10, deadline=clock.now + 15))
    door.enter(ask(steps=4, deadline=clock.now + 15))


def test_frames_that_a_model_makes_together_are_the_work_of_one() -> None:
    params = replace(UNIT, num_frames=81)
    video = Request("id", "", None, params, FamilyParams())
    assert cost(video) == pytest.approx(81) and cost(video, 4) == pytest.approx(21)


def test_a_small_request_is_not_refused_because_a_long_one_runs() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    door.enter(ask(steps=5000))
    door.enter(ask(steps=1), patience=2.5)


def test_a_replica_that_is_free_means_no_wait() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0, width=2)
    door.enter(ask(steps=10))
    door.enter(ask(steps=10), patience=11)
    with pytest.raises(DeadlineError):
        door.enter(ask(steps=10), patience=11)


def test_steps_that_are_done_no_longer_count_as_work_ahead() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    ticket = door.enter(ask(steps=10))
    for _ in range(8):
        clock.now += 1.0
        ticket.step()
    assert door.load().cost == pytest.approx(2.0)
    assert door.load().expected_wait == pytest.approx(2.0)


def test_the_first_step_of_all_is_no_measure_since_it_may_have_waited_for_the_model() -> None:
    clock = Clock()
    door = admission(clock)
    with door.enter(ask(steps=11)) as ticket:
        clock.now += 300.0
        ticket.step()
        for _ in range(10):
            clock.now += 1.0
            ticket.step()
        clock.now += 0.5
    assert door.load().seconds_per_cost == pytest.approx(1.05, rel=0.01)


def test_cancelled_work_is_no_measure() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    gone = door.enter(ask(steps=5))
    clock.now += 100.0
    gone.close(served=False)
    assert door.load().seconds_per_cost == pytest.approx(1.0)


def test_a_stall_counts_as_eight_times_the_expected_at_most() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    with door.enter(ask()):
        clock.now += 10_000.0
    pace = door.load().seconds_per_cost
    assert pace is not None and 1.0 < pace < 5.0


def test_an_idle_server_tries_again_what_it_believed_too_slow() -> None:
    clock = Clock()
    door = measured(clock, pace=50.0)
    with pytest.raises(DeadlineError):
        door.enter(ask(), patience=10)
    clock.now += Admission.STALE
    with door.enter(ask(), patience=10):
        clock.now += 1.0
    clock.now += 1.0
    door.enter(ask(), patience=30)


# -- what is learnt under load -----------------------------------------------------------------------------------


def shared(door: Admission, clock: Clock, tickets: list[Ticket], steps: int, tell: bool) -> None:
    """All tickets advance together, as in a batch: one step of each takes a second per ticket."""
    for _ in range(steps):
        clock.now += len(tickets)
        for ticket in tickets:
            if tell:
                ticket.step()
    for ticket in tickets:
        ticket.close(served=True)


def in_turn(door: Admission, clock: Clock, tickets: list[Ticket], steps: int, tell: bool) -> None:
    """One ticket after the other, at one second a step."""
    for ticket in tickets:
        shared(door, clock, [ticket], steps, tell)


@pytest.mark.parametrize("serve", [shared, in_turn])
@pytest.mark.parametrize("tell", [False, True])
def test_the_measured_speed_is_that_of_the_replica_however_it_shares_its_time(serve: object, tell: bool) -> None:
    clock = Clock()
    door = measured(clock, pace=1.0)
    for _ in range(5):
        serve(door, clock, [door.enter(ask(steps=4)) for _ in range(12)], 4, tell)  # type: ignore[operator]
        clock.now += 7.0  # idle
    assert door.load().seconds_per_cost == pytest.approx(1.0, rel=0.05)


def test_ten_times_the_load_is_admitted_only_as_far_as_it_can_be_served_in_time() -> None:
    """One request a second is served, ten arrive; clients wait 20 s. Nearly all that come in must be in time."""
    clock = Clock()
    door = measured(clock, pace=1.0)
    waiting: list[tuple[float, Ticket]] = []
    in_time = late = refused = 0
    for _ in range(200):
        for _ in range(10):
            clock.now += 0.1
            try:
                waiting.append((clock.now, door.enter(ask(), patience=20)))
            except DeadlineError:
                refused += 1
        came, ticket = waiting.pop(0)
        ticket.close(served=True)
        in_time, late = in_time + (clock.now - came <= 20), late + (clock.now - came > 20)
    assert in_time >= 195
    assert late <= 2
    assert refused > 1700


# -- tenants -----------------------------------------------------------------------------------------------------


def test_a_tenant_alone_leaves_room_for_another_on_a_busy_server() -> None:
    door = admission(Clock(), max_queue=8)
    for _ in range(6):
        door.enter(ask(tenant="a"))
    with pytest.raises(CapacityError, match="this key has 6 unfinished requests"):
        door.enter(ask(tenant="a"))
    door.enter(ask(tenant="b"))
    door.enter(ask(tenant="b"))
    assert door.load().tenants == {"a": 6, "b": 2}


def test_without_keys_all_of_the_queue_can_be_used() -> None:
    door = admission(Clock(), max_queue=8)
    for _ in range(8):
        door.enter(ask())
    with pytest.raises(CapacityError, match="takes no more than 8"):
        door.enter(ask())


def test_a_tenant_may_hold_more_than_its_share_while_the_server_is_not_busy() -> None:
    door = admission(Clock(), max_queue=20)
    door.enter(ask(tenant="b"))
    for _ in range(10):
        door.enter(ask(tenant="a"))
    with pytest.raises(CapacityError, match="this key has 10"):
        door.enter(ask(tenant="a"))


def test_beyond_what_runs_at_once_a_tenant_waits_for_its_own_work_and_not_for_all_of_anothers() -> None:
    clock = Clock()
    door = measured(clock, pace=1.0, max_queue=1000, max_wait=1000.0)
    for _ in range(100):
        door.enter(ask(steps=5, tenant="a"))
    with pytest.raises(DeadlineError, match="about 505"):
        door.enter(ask(steps=5, tenant="a"), patience=60)
    door.enter(ask(steps=5, tenant="b"), patience=60)


# -- cost of asking ----------------------------------------------------------------------------------------------


def calls_of_a_refusal(waiting: int) -> int:
    """How many functions are called to refuse a request while so many others wait, each of its own tenant."""
    door = measured(Clock(), pace=1.0)
    for number in range(waiting):
        door.enter(ask(tenant=f"t{number}"))
    calls: list[str] = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    try:
        with pytest.raises(DeadlineError):
            door.enter(ask(steps=50, tenant="t1"), patience=1)
    finally:
        sys.setprofile(None)
    return len(calls)


def test_refusing_takes_no_more_work_than_looking_at_everybody_who_waits() -> None:
    few, many = calls_of_a_refusal(25), calls_of_a_refusal(200)
    assert many <= 8 * few
    assert many < 5000
