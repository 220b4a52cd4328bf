"""Who runs next: order, fairness, budgets, bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import CapacityError, ConfigError
from omnimuse.core.request import Door
from omnimuse.engine.needs import NOTHING, Need
from omnimuse.engine.scheduler import FOREVER, Pick, Scheduler
from omnimuse.worker.pace import Offer, Party
from tests.fakes import SPEC, ask

DOOR = Door.of(SPEC, {}, "fake")


class Queue:
    """A scheduler whose clock stands still until it is told, and whose steps all cost what was said at first."""

    def __init__(self, wearable: float = FOREVER, **limits: Any) -> None:
        self.scheduler = Scheduler(ScheduleConfig(**limits), wearable)
        self.now = 0.0
        self.states: dict[str, int] = {}

    def add(self, name: str, tokens: int = 1, remembers: int = 0, need: Need = NOTHING, **choices: object) -> None:
        made = DOOR.make_request(ask(**choices), self.now, 1)
        self.scheduler.add(replace(made, id=name), tokens, self.now, remembers, need)

    def pick(self, room: float = FOREVER) -> Pick:
        states = self.states
        return self.scheduler.pick(self.now, lambda state_id: None, room=room, states=lambda id_: states.get(id_, 0))

    def run(self) -> list[str]:
        """The names of the requests that advance in the next tick."""
        return [state_id.split("/")[0] for state_id in self.pick().run]


def paced(**limits: Any) -> Queue:
    """One whose ticks were seen to take a second a token."""
    queue = Queue(**limits)
    queue.add("first", num_inference_steps=2)
    for _ in range(2):
        queue.run()
        queue.now += 1.0
    queue.scheduler.remove("first")
    return queue


def test_higher_priority_runs_first_then_the_earlier_arrival() -> None:
    queue = Queue()
    for name, priority in (("a", 0), ("b", 5), ("c", 0)):
        queue.add(name, priority=priority)
    pick = queue.pick()
    assert [r.id for r in pick.admit] == ["b", "a", "c"]
    assert pick.run == ("b/0", "a/0", "c/0")


def test_a_nearer_deadline_runs_first_among_equals() -> None:
    queue = Queue()
    queue.add("late", 1, timeout=9.0)
    queue.add("soon", 1, timeout=1.0)
    queue.add("never", 1)
    assert queue.run() == ["soon", "late", "never"]


def test_a_deadline_that_cannot_be_kept_any_more_comes_after_those_that_can() -> None:
    queue = paced(tick_tokens=1)
    queue.add("hopeless", timeout=5.0, num_inference_steps=50)
    queue.add("possible", timeout=9.0, num_inference_steps=8)
    assert queue.run() == ["possible"]


def test_nobody_joins_a_tick_at_the_price_of_a_deadline() -> None:
    queue = paced()
    queue.add("urgent", timeout=10.0, num_inference_steps=5)
    queue.add("large", 3, num_inference_steps=5)
    assert queue.run() == ["urgent"]
    queue.scheduler.remove("urgent")
    queue.add("patient", timeout=100.0, num_inference_steps=5)
    assert sorted(queue.run()) == ["large", "patient"]


def test_what_a_solver_evaluates_twice_a_step_is_more_work_than_its_steps_say() -> None:
    queue = Queue()
    for name, steps, more in (("twice", 5, 4), ("once", 7, 0)):
        made = DOOR.make_request(ask(num_inference_steps=steps), queue.now, 1)
        queue.scheduler.add(replace(made, id=name, more=more), 1, queue.now)
    assert queue.run() == ["once", "twice"]


def test_a_tick_stays_within_its_token_budget_but_never_stands_still() -> None:
    queue = Queue(tick_tokens=10)
    queue.add("small")
    queue.add("big", 50)
    assert queue.run() == ["small"]
    queue.scheduler.remove("small")
    assert queue.run() == ["big"]


def test_who_has_no_room_by_what_is_foretold_waits_and_nobody_behind_it_goes_first() -> None:
    queue = Queue()
    for name, beside in (("first", 60), ("second", 60), ("small", 30), ("larger than all", 200)):
        queue.add(name, need=Need(beside))
    runs = []
    while queue.scheduler.entries:
        ran = sorted({state_id.split("/")[0] for state_id in queue.pick(100).run})
        runs.append(ran)
        queue.scheduler.finished(f"{ran[0]}/0")
        queue.scheduler.remove(ran[0])
    assert runs == [["first"], ["second", "small"], ["small"], ["larger than all"]]


def test_what_only_one_takes_at_a_time_is_counted_once() -> None:
    queue = Queue()
    for name, need in (("large", Need(10, 60)), ("small", Need(10, 50)), ("other", Need(20, 60)), ("last", Need(10))):
        queue.add(name, need=need)
    assert queue.pick(100).run == ("large/0", "small/0", "other/0")
    queue.scheduler.remove("large")
    assert queue.pick(100).run == ("small/0", "other/0", "last/0")


def test_what_several_wear_takes_room_once_until_nobody_wears_it() -> None:
    queue = Queue()
    worn = {"one": {"style": 60}, "other": {"style": 60}, "third": {"style": 60, "line": 15}}
    for name, adapters in worn.items():
        queue.add(name, need=Need(10, 0, adapters))
    assert queue.pick(100).run == ("one/0", "other/0")
    assert queue.scheduler.taken(lambda request: Need()) == 80
    queue.scheduler.remove("one")
    assert queue.pick(100).run == ("other/0", "third/0"), "95 of them"
    queue.scheduler.remove("third")
    queue.add("none", need=Need(31))
    assert queue.pick(100).run == ("other/0",)
    queue.scheduler.remove("other")
    assert queue.pick(100).run == ("none/0",)


def test_what_they_wear_who_give_up_their_places_stays_there() -> None:
    queue = Queue(slice=0)
    for name in ("one", "other"):
        queue.add(name, need=Need(20, 0, {"style": 60}))
    assert queue.pick(100).run == ("one/0", "other/0")
    queue.add("urgent", need=Need(45), priority=5)
    assert queue.pick(100).park == (), "they would leave no room for it"
    queue.scheduler.remove("urgent")
    queue.add("urgent", need=Need(40), priority=5)
    pick = queue.pick(100)
    assert (set(pick.park), pick.run) == ({"one", "other"}, ("urgent/0",))
    assert queue.scheduler.taken(lambda request: Need()) == 100


def test_who_has_no_room_for_what_it_wears_beside_what_others_wear_waits_for_them() -> None:
    queue = Queue(wearable=100)
    worn = {"one": {"style": 60}, "other": {"line": 60}, "third": {"style": 60, "line": 60}}
    for name, adapters in worn.items():
        queue.add(name, need=Need(worn=adapters))
    assert queue.pick().run == ("one/0",)
    queue.scheduler.hold("one", True)
    assert queue.pick().run == (), "what is paused goes on wearing it"
    queue.scheduler.remove("one")
    assert queue.pick().run == ("other/0",)
    queue.scheduler.remove("other")
    assert queue.pick().run == ("third/0",), "it is refused when it begins"


def test_what_is_joined_for_several_is_there_one_at_a_time() -> None:
    queue = Queue()
    for name, joined in (("one", 50), ("other", 40), ("third", 50)):
        queue.add(name, need=Need(10, 0, {"style": 20}, joined))
    assert queue.pick(99).run == ("one/0", "other/0")
    assert queue.scheduler.taken(lambda request: Need()) == 90


def test_who_wears_something_and_is_of_a_kind_that_nobody_knows_is_guessed() -> None:
    queue = Queue()
    queue.add("unknown", need=Need(worn={"style": 60}))
    queue.pick(100)
    assert queue.scheduler.taken(lambda request: Need(30, 5)) == 95


def test_who_gives_up_its_place_leaves_what_it_took_alone_too() -> None:
    queue = Queue(slice=0)
    queue.add("stays", need=Need(5, 10), priority=9)
    queue.add("goes", need=Need(10, 60))
    queue.pick(100)
    queue.add("urgent", need=Need(50, 45), priority=5)
    pick = queue.pick(100)
    assert (pick.park, pick.run) == (("goes",), ("stays/0", "urgent/0"))


def test_what_a_paused_request_keeps_is_room_that_others_do_not_have_until_it_goes_on() -> None:
    queue = Queue()
    queue.states["paused"] = 50
    queue.add("paused", need=Need(60))
    queue.pick(100)
    queue.scheduler.hold("paused", True)
    for name, beside in (("larger", 60), ("small", 10)):
        queue.add(name, need=Need(beside))
    pick = queue.pick(100)
    assert (pick.park, pick.run) == (("paused",), ("larger/0",)), "nothing is in progress, so the first is let in"
    queue.scheduler.remove("larger")
    for name, beside in (("fits", 30), ("none left", 20)):
        queue.add(name, need=Need(beside))
    assert queue.pick(100).run == ("small/0", "fits/0")
    queue.scheduler.remove("none left")
    queue.scheduler.hold("paused", False)
    queue.add("next", need=Need(1))
    pick = queue.pick(101)
    assert pick.wake == ("paused",), "what it kept is of what it needs"
    assert set(pick.run) == {"small/0", "fits/0", "paused/0", "next/0"}, "and it keeps nothing beside that"


@pytest.mark.parametrize(("states", "parked"), [(30, ("goes",)), (50, ())])
def test_nobody_gives_up_its_place_where_what_it_keeps_leaves_no_room(states: int, parked: tuple[str, ...]) -> None:
    queue = Queue(slice=0)
    queue.states["goes"] = states
    queue.add("goes", need=Need(60))
    queue.pick(100)
    queue.add("urgent", need=Need(60), priority=5)
    pick = queue.pick(100)
    assert pick.park == parked
    assert pick.run == (("urgent/0",) if parked else ("goes/0",))


def test_what_paused_requests_keep_counts_as_remembered() -> None:
    queue = Queue(running_bytes=100)
    queue.states["paused"] = 50
    queue.add("paused", remembers=60)
    queue.pick()
    queue.scheduler.hold("paused", True)
    queue.add("goes on", remembers=40)
    queue.add("waits", remembers=20)
    assert queue.pick().run == ("goes on/0",)


@pytest.mark.parametrize(("kept", "run"), [(20, ("a/1", "a/2", "b/0")), (21, ("a/1", "a/2")), (30, ("a/1",))])
def test_finished_outputs_are_room_that_others_do_not_have(kept: int, run: tuple[str, ...]) -> None:
    queue = Queue()
    queue.add("a", need=Need(36), num_outputs_per_prompt=3)
    assert queue.pick(100).run == ("a/0", "a/1")
    queue.scheduler.finished("a/0", kept)
    queue.add("b", need=Need(8))
    assert sorted(queue.pick(100).run) == sorted(run)


@pytest.mark.parametrize("need", [Need(40), Need(30, 35)])
def test_outputs_that_have_no_room_beside_each_other_step_one_after_the_other(need: Need) -> None:
    queue = Queue()
    queue.add("a", need=need, num_outputs_per_prompt=3)
    assert queue.pick(100).run == ("a/0", "a/1")
    assert queue.scheduler.taken(lambda request: Need()) == 3 * need.beside + need.beyond
    queue.scheduler.finished("a/0")
    assert queue.pick(100).run == ("a/1", "a/2")


def test_who_is_postponed_waits_as_if_it_had_not_been_chosen() -> None:
    queue = Queue()
    queue.add("stays")
    queue.add("waits", 7, tenant="other")
    entry, tenants = queue.scheduler.entries["waits"], queue.scheduler.tenants
    before = entry.left
    assert len(queue.pick().run) == 2
    assert (entry.left, tenants["other"].served) == (before - 7, 7)
    queue.scheduler.postpone(["waits"], queue.now)
    assert (entry.left, tenants["other"].served) == (before, 0)
    queue.scheduler.repeated(1, queue.now)
    assert tenants["other"].served == 0
    queue.now = 100.0
    assert [request.id for request in queue.pick().admit] == ["waits"]
    assert queue.scheduler.alone(entry.request, 7) is None, "as long as something was tried, which is no measure"


def test_a_request_alone_takes_the_time_of_all_its_steps_and_outputs() -> None:
    made = DOOR.make_request(ask(num_inference_steps=5, num_outputs_per_prompt=2), 0.0, 1)
    assert paced().scheduler.alone(made, 3) == 3 * 5 * 2


def test_who_is_paused_makes_nobody_late() -> None:
    queue = paced(tick_tokens=1)
    queue.add("paused", timeout=5.0, num_inference_steps=4)
    queue.scheduler.hold("paused", True)
    queue.add("possible", timeout=9.0, num_inference_steps=8)
    queue.add("short", num_inference_steps=1)
    assert queue.run() == ["possible"]


def test_the_nearest_deadline_of_all_is_told_and_whether_a_request_is_known() -> None:
    queue = Queue()
    assert queue.scheduler.next_deadline() is None
    for name, choices in (("late", {"timeout": 9.0}), ("soon", {"timeout": 1.0}), ("never", {})):
        queue.add(name, **choices)
    assert queue.scheduler.next_deadline() == 1.0
    assert [queue.scheduler.hold(name, True) for name in ("soon", "nobody")] == [True, False]


def test_who_is_no_company_keeps_nobody_behind_it_from_joining() -> None:
    queue = Queue()
    for name in ("first", "apart", "joins"):
        queue.add(name)
    pick = queue.scheduler.pick(0.0, lambda state_id: None, lambda party, offer: offer.state != "apart/0")
    assert pick.run == ("first/0", "joins/0")


def test_a_tenant_that_comes_is_level_with_who_was_served_least() -> None:
    queue = Queue(tick_tokens=1)
    queue.add("large", 10, tenant="a", num_inference_steps=9, priority=1)
    queue.add("small", 1, tenant="b", num_inference_steps=9)
    assert queue.run() == ["large"]
    queue.add("comes", 1, tenant="c", num_inference_steps=9)
    assert sorted([*queue.run(), *queue.run()]) == ["comes", "small"]


def test_every_output_comes_to_remember_as_much_as_one_and_leaves_it_with_its_place() -> None:
    queue = Queue(running_bytes=100, slice=0)
    queue.add("stays", remembers=5, priority=9)
    queue.add("pair", remembers=30, num_outputs_per_prompt=2)
    queue.add("waits", remembers=25, num_outputs_per_prompt=2)
    assert [request.id for request in queue.pick().admit] == ["stays", "pair"]
    queue.add("urgent", remembers=45, num_outputs_per_prompt=2, priority=5)
    pick = queue.pick()
    assert (pick.park, [request.id for request in pick.admit]) == (("pair",), ["urgent"])


def test_what_somebody_takes_alone_is_no_room_for_who_would_begin_beside_it() -> None:
    queue = Queue()
    for name, need in (("alone", Need(10, 60)), ("beside", Need(35, 10))):
        queue.add(name, need=need)
    assert [request.id for request in queue.pick(100).admit] == ["alone"]


def test_two_tenants_share_ticks_however_many_requests_one_of_them_sends() -> None:
    queue = Queue(tick_tokens=1)
    for index in range(8):
        queue.add(f"greedy{index}", tenant="greedy")
    queue.add("modest", 1, tenant="modest")
    served = [queue.run()[0].startswith("modest") for _ in range(10)]
    assert sum(served) == 5


def test_a_tenant_that_was_away_earns_no_credit() -> None:
    queue = Queue(tick_tokens=1)
    queue.add("steady", 1, tenant="steady")
    for _ in range(100):
        queue.pick()
    queue.add("fresh", 1, tenant="fresh")
    served = [queue.run()[0] for _ in range(10)]
    assert served.count("steady") == 5


def test_a_paused_request_earns_its_tenant_no_credit_and_whoever_comes_meanwhile_none() -> None:
    queue = Queue(tick_tokens=1)
    queue.add("paused", 1, tenant="pausing")
    queue.pick()
    queue.scheduler.hold("paused", True)
    queue.add("steady", 1, tenant="steady")
    for _ in range(100):
        queue.pick()
    queue.add("fresh", 1, tenant="fresh")
    assert Counter(queue.run()[0] for _ in range(10)) == {"steady": 5, "fresh": 5}
    queue.scheduler.hold("paused", False)
    assert Counter(queue.run()[0] for _ in range(12)) == {"steady": 4, "fresh": 4, "paused": 4}


def test_a_full_queue_refuses_with_a_capacity_error() -> None:
    queue = Queue(max_queue=2)
    queue.add("a", 1)
    queue.add("b", 1)
    with pytest.raises(CapacityError, match="queue is full"):
        queue.add("c", 1)


def test_no_more_outputs_run_than_allowed_and_the_rest_follow() -> None:
    queue = Queue(max_running=3)
    queue.add("a", 1, num_outputs_per_prompt=2)
    queue.add("b", 1, num_outputs_per_prompt=2)
    assert [r.id for r in queue.pick().admit] == ["a"]
    queue.scheduler.finished("a/0")
    assert [r.id for r in queue.pick().admit] == ["b"]


def test_a_request_larger_than_every_bound_runs_alone() -> None:
    queue = Queue(max_running=2, running_tokens=10)
    queue.add("huge", 100, num_outputs_per_prompt=5)
    assert [r.id for r in queue.pick().admit] == ["huge"]
    queue.add("next")
    assert queue.pick().admit == ()


def test_what_is_remembered_bounds_who_is_in_progress() -> None:
    queue = Queue(running_bytes=100)
    queue.add("first", remembers=60)
    queue.add("large", remembers=50)
    queue.add("small", remembers=10)
    assert [r.id for r in queue.pick().admit] == ["first"], "and small does not overtake large for ever"
    queue.scheduler.remove("first")
    assert [r.id for r in queue.pick().admit] == ["large", "small"]
    queue.add("larger than all", remembers=101)
    assert queue.pick().admit == ()
    for name in ("large", "small"):
        queue.scheduler.remove(name)
    assert [r.id for r in queue.pick().admit] == ["larger than all"]


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones() -> None:
    queue = Queue(max_running=2, patience=10.0, slice=1e6)
    queue.add("first", num_inference_steps=1000)
    queue.pick()
    queue.add("wide", num_outputs_per_prompt=2)
    queue.now = 9.0
    queue.add("narrow")
    assert [r.id for r in queue.pick().admit] == ["narrow"]
    queue.scheduler.remove("narrow")
    queue.now = 11.0
    queue.add("narrower", num_inference_steps=1)
    assert queue.pick().admit == (), "they must wait behind wide, which is late"


def test_a_paused_request_gives_up_its_place_and_takes_one_again() -> None:
    queue = Queue(max_running=1)
    queue.add("a")
    queue.add("b")
    assert queue.run() == ["a"]
    queue.scheduler.hold("a", True)
    pick = queue.pick()
    assert (pick.park, pick.run) == (("a",), ("b/0",))
    assert [r.id for r in pick.admit] == ["b"]
    queue.scheduler.hold("a", False)
    assert queue.run() == ["b"], "its place is taken"
    queue.scheduler.remove("b")
    pick = queue.pick()
    assert (pick.wake, pick.run) == (("a",), ("a/0",))


def test_pausing_and_resuming_between_two_ticks_is_nothing() -> None:
    queue = Queue()
    queue.add("a")
    queue.pick()
    queue.scheduler.hold("a", True)
    queue.scheduler.hold("a", False)
    assert queue.pick() == Pick((), (), (), ("a/0",))


def test_there_is_nothing_to_do_when_all_are_paused_and_parked() -> None:
    queue = Queue()
    queue.add("a")
    queue.add("b")
    queue.pick()
    for name in ("a", "b"):
        queue.scheduler.hold(name, True)
    assert queue.scheduler.busy, "they must be parked"
    queue.pick()
    assert not queue.scheduler.busy
    queue.scheduler.hold("b", False)
    assert queue.scheduler.busy


def test_requests_past_their_deadline_are_named() -> None:
    queue = Queue()
    queue.add("a", timeout=1.0)
    assert queue.scheduler.expired(0.5) == []
    assert queue.scheduler.expired(1.5) == ["a"]
    assert queue.scheduler.next_deadline() == 1.0


def test_time_without_a_place_does_not_count_as_running() -> None:
    queue = Queue(max_run=5.0)
    queue.add("a")
    for queue.now in (0.0, 3.0):
        queue.pick()
    queue.scheduler.hold("a", True)
    for queue.now in (4.0, 50.0):
        queue.pick()
    queue.scheduler.hold("a", False)
    queue.pick()
    assert queue.scheduler.overrun(50.0) == []
    assert queue.scheduler.overrun(52.0) == ["a"]


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    queue = Queue(tick_tokens=1)
    queue.add("long", num_inference_steps=50)
    queue.pick()
    queue.add("short", num_inference_steps=2)
    assert [queue.run()[0] for _ in range(2)] == ["short", "short"]


def test_a_tenant_who_fills_every_place_makes_room_for_another_after_a_slice() -> None:
    queue = Queue(max_running=2, slice=2.0)
    for name in ("a", "b", "c"):
        queue.add(name, tenant="greedy", num_inference_steps=1000)
    queue.pick()
    queue.add("d", tenant="modest")
    queue.now = 1.0
    assert queue.pick().park == (), "a place is kept for a slice of time"
    queue.now = 2.0
    pick = queue.pick()
    assert len(pick.park) == 1
    assert [r.id for r in pick.admit] == ["d"]


def test_places_do_not_change_hands_where_nobody_else_has_more_of_a_turn() -> None:
    queue = Queue(max_running=1)
    queue.add("first", num_inference_steps=5)
    queue.pick()
    queue.add("second", num_inference_steps=5)
    for queue.now in range(1, 100, 10):
        assert queue.pick().park == ()


def test_what_a_tenant_took_is_remembered_when_others_come_and_go() -> None:
    queue = Queue(tick_tokens=1)
    queue.add("steady", tenant="steady", num_inference_steps=1000)
    queue.add("greedy", 100, tenant="greedy", num_inference_steps=1)
    while "greedy" not in queue.run():
        pass
    queue.scheduler.remove("greedy")  # 100 tokens were done for it, a few for steady
    queue.add("other", tenant="other", num_inference_steps=1000)
    queue.scheduler.remove("other")
    queue.add("again", tenant="greedy", num_inference_steps=1000)
    assert [queue.run()[0] for _ in range(50)].count("again") == 0


@dataclass
class Flow:
    """Requests of one kind that keep coming: one whenever fewer than `many` of them are unfinished."""

    name: str
    many: int
    steps: int = 5
    ask: dict[str, Any] = field(default_factory=dict)
    made: int = 0


@dataclass
class Seen:
    """What one flow got: its steps, and the longest time that one of its requests took from arrival to end."""

    steps: int = 0
    longest: float = 0.0


def simulate(
    queue: Queue, flows: Sequence[Flow], ticks: int, look: Callable[[], object] = lambda: None
) -> dict[str, Seen]:
    """Ticks of a tenth of a second, with a `look` after each. Every request ends after its steps."""
    left, came = dict[str, int](), dict[str, float]()
    seen = {flow.name: Seen() for flow in flows}
    for _ in range(ticks):
        for flow in flows:
            while sum(name.split(".")[0] == flow.name for name in left) < flow.many:
                name = f"{flow.name}.{flow.made}"
                flow.made += 1
                left[name], came[name] = flow.steps, queue.now
                queue.add(name, num_inference_steps=flow.steps, **flow.ask)
        for name in queue.run():
            got = seen[name.split(".")[0]]
            got.steps += 1
            left[name] -= 1
            if not left[name]:
                del left[name]
                queue.scheduler.remove(name)
            got.longest = max(got.longest, queue.now + 0.1 - came[name])
        look()
        queue.now += 0.1
    return seen


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("max_running", [1, 2, 64])
@pytest.mark.parametrize(
    "crowd",
    [{"priority": 10}, {"timeout": 20.0}, {"steps": 1}, {"priority": 3, "timeout": 5.0}],
    ids=["of higher priority", "with deadlines", "that are shorter", "of both"],
)
def test_a_steady_flow_of_requests_keeps_nobody_out(crowd: dict[str, Any], max_running: int) -> None:
    queue = Queue(tick_tokens=1, max_running=max_running, patience=30.0, slice=1.0)
    chosen = {"steps": 5, **crowd}
    flows = [Flow("crowd", 6, int(chosen.pop("steps")), chosen), Flow("alone", 1, 20)]
    seen = simulate(queue, flows, 2000)  # 200 seconds
    assert seen["alone"].steps >= 100
    assert seen["alone"].longest <= 30.0 + 2 * 2.0 + 4 * 1.0, "its patience, twice its own work, and some slices"
    assert sum(each.steps for each in seen.values()) == 2000, "no tick is idle"


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("max_running", [1, 3, 64])
def test_tenants_get_equal_work_whatever_they_ask_for(max_running: int) -> None:
    queue = Queue(tick_tokens=1, max_running=max_running)
    flows = [
        Flow("many", 30, 5, {"tenant": "many"}),
        Flow("loud", 5, 5, {"tenant": "loud", "priority": 50, "timeout": 9.0}),
        Flow("long", 1, 400, {"tenant": "long"}),
    ]
    got = simulate(queue, flows, 3000)
    for seen in got.values():
        assert abs(seen.steps - 1000) <= 1000 * 0.05


@pytest.mark.parametrize("steps", [7, 400])
def test_a_tenant_never_has_more_than_its_share_and_others_never_wait_for_a_place(steps: int) -> None:
    queue = Queue(max_running=8, tenant_share=0.5, slice=5.0, tick_tokens=3)
    most = Counter[str]()

    def look() -> None:
        nonlocal most
        most |= Counter(entry.request.tenant for entry in queue.scheduler.entries.values() if entry.active)

    simulate(queue, [Flow("greedy", 12, steps, {"tenant": "greedy"})], 400, look)
    assert most == {"greedy": 4}
    queue.add("modest", tenant="modest")
    assert "modest" in [made.id for made in queue.pick().admit], "there is a place, although no slice is over"


def test_tenants_with_shares_get_equal_work_and_every_tick_is_full() -> None:
    queue = Queue(max_running=8, tenant_share=0.5, slice=1.0, tick_tokens=3)
    flows = [Flow(name, 12, steps, {"tenant": name}) for name, steps in (("a", 1), ("b", 7), ("c", 400))]
    seen = simulate(queue, flows, 800)
    assert sum(each.steps for each in seen.values()) == 3 * 800
    assert all(abs(each.steps - 800) <= 40 for each in seen.values())


def test_a_request_larger_than_its_tenant_s_share_runs_as_the_only_one_of_that_tenant() -> None:
    queue = Queue(max_running=8, tenant_share=0.25, running_tokens=100)
    queue.add("large", 20, tenant="a", num_outputs_per_prompt=4, priority=1)
    queue.add("next", tenant="a")
    queue.add("other", tenant="b")
    assert {made.id for made in queue.pick().admit} == {"large", "other"}
    queue.scheduler.remove("large")
    assert [made.id for made in queue.pick().admit] == ["next"]


def test_a_share_bounds_tokens_as_it_bounds_places() -> None:
    queue = Queue(max_running=8, tenant_share=0.5, running_tokens=100)
    for name in ("a1", "a2", "a3"):
        queue.add(name, 25, tenant="a")
    assert [made.id for made in queue.pick().admit] == ["a1", "a2"]


def test_within_a_share_that_is_full_the_more_urgent_request_of_the_same_tenant_gets_the_place() -> None:
    queue = Queue(max_running=4, tenant_share=0.25, slice=2.0)
    for name, tenant in (("mine", "a"), ("b1", "b"), ("c1", "c"), ("d1", "d")):
        queue.add(name, tenant=tenant, num_inference_steps=1000)
    assert len(queue.pick().admit) == 4
    queue.add("urgent", tenant="a", priority=5)
    queue.now = 2.0
    pick = queue.pick()
    assert (pick.park, [made.id for made in pick.admit]) == (("mine",), ["urgent"])


def test_a_tenant_whose_share_is_full_does_not_keep_another_from_a_place_that_changes_hands() -> None:
    queue = Queue(max_running=2, tenant_share=0.5, slice=2.0, tick_tokens=1)
    for name, tenant in (("a1", "a"), ("b1", "b")):
        queue.add(name, tenant=tenant, num_inference_steps=1000)
    for _ in range(50):
        queue.pick()
    queue.add("a2", tenant="a", num_inference_steps=2000)
    queue.add("c1", tenant="c")
    queue.now = 2.0
    pick = queue.pick()
    assert len(pick.park) == 1 and [made.id for made in pick.admit] == ["c1"]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_a_part_of_all(share: float) -> None:
    with pytest.raises(ConfigError, match="tenant_share"):
        ScheduleConfig(tenant_share=share)


def test_a_tick_with_room_for_all_runs_all() -> None:
    queue = Queue()
    got = simulate(queue, [Flow("a", 10, 5, {"tenant": "a"}), Flow("b", 1, 5, {"tenant": "b"})], 100)
    assert {name: seen.steps for name, seen in got.items()} == {"a": 1000, "b": 100}


def test_states_in_whose_company_nothing_is_gained_wait_for_the_next_tick() -> None:
    queue = Queue()
    for name, steps in (("long", 9), ("short", 2), ("middle", 5)):
        queue.add(name, num_inference_steps=steps)
    alone = queue.scheduler.pick(0.0, lambda state_id: None, lambda party, offer: False)
    assert len(alone.admit) == 3
    assert alone.run == ("short/0",), "the shortest is done first"
    asked: list[tuple[list[str], str]] = []

    def only_middle(party: Party, offer: Offer) -> bool:
        asked.append(([each.state for each in party.offers], offer.state))
        return offer.state == "middle/0"

    assert queue.scheduler.pick(0.0, lambda state_id: None, only_middle).run == ("short/0", "middle/0")
    assert asked == [(["short/0"], "middle/0"), (["short/0", "middle/0"], "long/0")]
