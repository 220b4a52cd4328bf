"""The simulator: what it says of loads whose outcome can be reckoned by hand, and what it says about our choices."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.deadlines import Within
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.deploy.scale import Scale
from omnimuse.simulate.arrivals import Arrival, Mix, bursts, poisson, trace
from omnimuse.simulate.figures import enough, summarize
from omnimuse.simulate.fleet import Failures, Outcome, Plan, simulate
from omnimuse.simulate.replica import Costs, Job
from omnimuse.simulate.table import Kind, Table, read_table

SMALL = Kind(512, 512, steps=20, step=0.02, once=0.1, beside=0.05)
LARGE = Kind(1024, 1024, steps=20, step=0.1, once=0.3)
VIDEO = Kind(832, 480, steps=30, step=0.8, once=2.0, frames=81)
TABLE = Table("m", {"small": SMALL, "large": LARGE, "video": VIDEO}, together=0.8, ranks={2: 0.6})
THREE_TIMES = Within(times=3.0)


def outcomes(plan: Plan, *arrivals: Arrival) -> list[Outcome]:
    return simulate(plan, TABLE, arrivals).outcomes


def within(plan: Plan, rate: float, seconds: float = 300.0, **weights: float) -> float:
    return float(summarize(simulate(plan, TABLE, poisson(rate, seconds, Mix(weights))))["within"])


@pytest.mark.parametrize("policy", ["ours", "fifo"])
def test_one_request_takes_what_the_table_says(policy: str) -> None:
    plan = replace(Plan(), policy=policy)
    [one] = outcomes(plan, Arrival(1.0, "small"))
    assert one.end == "ok" and one.latency == pytest.approx(SMALL.alone) == pytest.approx(0.55)
    [shared] = outcomes(replace(plan, ranks=2), Arrival(1.0, "small"))
    assert shared.latency == pytest.approx(0.1 + 0.05 + 0.6 * 0.4)


def test_first_in_first_out_serves_in_order_and_ours_lets_the_short_one_by() -> None:
    arrivals = (Arrival(0.0, "video"), Arrival(1.0, "small"))
    assert [each.arrival.kind for each in outcomes(Plan(policy="fifo"), *arrivals)] == ["video", "small"]
    short, long = outcomes(Plan(), *arrivals)
    assert (short.arrival.kind, long.arrival.kind) == ("small", "video")
    assert short.latency < VIDEO.step + 0.1 + SMALL.alone + 1.0
    assert long.latency == pytest.approx(VIDEO.alone + SMALL.busy)


def test_between_the_parts_of_what_comes_after_the_steps_whoever_is_in_a_hurry_has_its_turn() -> None:
    decoding = 30 * VIDEO.step + 1.0
    arrivals = (Arrival(0.0, "video"), Arrival(decoding + 0.1, "small", target=5.0))
    for parts in (1, 4):
        table = replace(TABLE, kinds={**TABLE.kinds, "video": replace(VIDEO, parts=parts)})
        first, last = simulate(Plan(), table, arrivals).outcomes
        assert max(first.ended, last.ended) == pytest.approx(VIDEO.busy + SMALL.alone, abs=SMALL.beside)
        assert (first.arrival.kind == "small") == (parts == 4)


def test_a_replica_that_fails_loses_its_work_and_the_request_is_drawn_again_once() -> None:
    run = simulate(Plan(failures=Failures(every=40.0, away=5.0)), TABLE, [Arrival(0.0, "video") for _ in range(4)])
    ends = [each.end for each in run.outcomes]
    assert run.failed and set(ends) <= {"ok", "lost"} and len(ends) == 4
    assert summarize(run)["utilisation"] < 1.0


def test_the_same_seed_is_the_same_load() -> None:
    mix = Mix({"small": 3.0, "large": 1.0}, seed=5)
    assert list(poisson(2.0, 50.0, mix)) == list(poisson(2.0, 50.0, mix))
    crowds = list(bursts(2.0, 4, 50.0, mix))
    assert len(crowds) % 4 == 0 and len({each.at for each in crowds}) == len(crowds) // 4


def test_a_trace_is_read_line_by_line_or_from_what_bench_wrote(tmp_path: Path) -> None:
    lines = tmp_path / "trace"
    lines.write_text('{"at": 2, "kind": "small", "tenant": "a"}\n{"at": 1, "kind": "large", "target": 3}\n')
    assert [each.kind for each in trace(lines)] == ["large", "small"]
    lines.write_text(json.dumps({"rows": [{"due": 0.5, "kind": "small", "status": 200}]}, indent=1))
    assert list(trace(lines)) == [Arrival(0.5, "small")]
    for nonsense, why in (("nonsense", "it is no JSON at line 1, column 1"), ("[" * 100_000, "it is nested too deep")):
        lines.write_text(nonsense)
        with pytest.raises(ConfigError, match=rf"--trace .* is not understood: {why}"):
            trace(lines)
        with pytest.raises(ConfigError, match=rf"is no table of what work takes \({why}\)"):
            read_table(lines)
    lines.write_text(json.dumps({"rows": [{"kind": "small"}]}, indent=1))
    with pytest.raises(ConfigError, match=r"is not understood: it lacks 'due'"):
        trace(lines)


def test_a_trace_may_name_classes_of_deadlines() -> None:
    arrivals = [Arrival(0.0, "small", target=name) for name in ("quick", "long", "batch", "long", "quick")]
    plan = Plan(schedule=ScheduleConfig(deadlines={"quick": "1", "long": "4x"}))
    assert [each.target for each in outcomes(plan, *arrivals[:3])] == [1.0, pytest.approx(4 * SMALL.alone), None]
    ends = [each.arrival.target for each in outcomes(plan, *arrivals)]
    assert ends[-1] == "batch", "what nobody waits for comes last"
    with pytest.raises(RequestError, match="one of batch, interactive"):
        outcomes(Plan(), arrivals[0])


def test_ranks_that_divide_serve_more_in_time_than_all_together_and_than_as_many_replicas() -> None:
    mix = {"small": 10.0, "large": 4.0, "video": 1.0}
    table = replace(TABLE, ranks={2: 0.6, 4: 0.4})
    plans = (Plan(ranks=4, elastic=True), Plan(ranks=4), Plan(Scale.fixed(4)))
    load = list(poisson(1.2, 300.0, Mix(mix)))
    elastic, whole, apart = (
        summarize(simulate(replace(plan, target=Within(times=1.0)), table, load))["within"] for plan in plans
    )
    assert elastic > whole > apart


def test_a_step_in_company_takes_what_is_fixed_once() -> None:
    job = partial(Job, Arrival(0.0, "small"), request=None)  # type: ignore[arg-type]
    some, more = replace(SMALL, fixed=0.015), replace(LARGE, fixed=0.03)
    costs = Costs(1.0, 0.8)
    assert costs.forward([job(some)] * 4) == pytest.approx(4 * 0.02 - 3 * 0.015)
    assert costs.forward([job(some), job(more)]) == pytest.approx(0.12 - 0.015)
    assert costs.forward([job(some), job(LARGE)]) == pytest.approx(0.8 * 0.12)
    first = job(replace(some, before=0.25))
    assert costs.seconds([first]) == pytest.approx(0.02 + 0.25 * 0.1)
    first.done = 19
    assert costs.seconds([first]) == pytest.approx(0.02 + 0.75 * 0.1)


def test_a_table_outlives_its_file_and_strange_words_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(TABLE.encode())
    assert read_table(path) == TABLE
    path.write_text('{"model": "m", "kinds": {"a": {"width": 1, "height": 1, "steps": 1, "step": 1, "colour": 2}}}')
    with pytest.raises(ConfigError, match="colour mean nothing"):
        read_table(path)
    with pytest.raises(ConfigError, match="does not tell what so many take"):
        TABLE.share(8)


@pytest.mark.parametrize(("rate", "gain"), [(0.7, 1.3), (1.0, 1.3)])
def test_on_mixed_sizes_three_tenths_more_are_in_time_than_first_in_first_out(rate: float, gain: float) -> None:
    ours = Plan(target=THREE_TIMES)
    fifo = replace(ours, policy="fifo")
    assert within(ours, rate, small=1, large=1) >= gain * within(fifo, rate, small=1, large=1)


def test_on_pictures_and_videos_near_what_a_fleet_can_do_nearly_half_as_many_again_are_in_time() -> None:
    ours = Plan(Scale.fixed(4), target=THREE_TIMES)
    fifo = replace(ours, policy="fifo")
    assert within(ours, 1.2, small=10, large=4, video=1) >= 1.44 * within(fifo, 1.2, small=10, large=4, video=1)


@pytest.mark.costly(turns=3)
def test_replicas_come_while_requests_wait_and_go_when_some_are_idle() -> None:
    rush = list(poisson(4.0, 120.0, Mix({"small": 1.0, "large": 1.0})))
    later = [Arrival(900.0, "small")]
    scale = Scale(1, 6, grow_after=2.0, shrink_after=60.0)
    run = simulate(Plan(scale, start=5.0), TABLE, [*rush, *later])
    assert 3 < run.most <= 6
    assert run.there < 900 + 5 * (120 + 6 * 60)  # all are gone but one long before the last request comes
    least, most = (simulate(Plan(Scale.fixed(count)), TABLE, [*rush, *later]) for count in (1, 6))
    assert least.there == pytest.approx(900.5) and most.there == pytest.approx(6 * 900.5)


@pytest.mark.costly(turns=3)
def test_replicas_between_bounds_serve_nearly_what_the_most_do_with_fewer_replica_seconds() -> None:
    def figures(scale: Scale) -> dict[str, float]:
        load = poisson(2.0, 600.0, Mix({"small": 1.0, "large": 1.0}))
        return summarize(simulate(Plan(scale, target=THREE_TIMES, start=10.0), TABLE, load))

    moving, least, most = figures(Scale(1, 8, 2.0, 120.0)), figures(Scale.fixed(1)), figures(Scale.fixed(8))
    assert moving["goodput"] > 0.9 * most["goodput"] > 2 * least["goodput"]
    assert moving["replica_seconds"] < 0.7 * most["replica_seconds"]


def test_a_request_that_waits_moves_to_a_replica_that_comes() -> None:
    arrivals = [Arrival(0.0, "video"), Arrival(0.0, "video")]
    one = Plan(schedule=ScheduleConfig(max_running=1), start=2.0)
    fixed = simulate(one, TABLE, arrivals)
    moved = simulate(replace(one, scale=Scale(1, 2, grow_after=1.0)), TABLE, arrivals)
    assert max(each.ended for each in fixed.outcomes) == pytest.approx(2 * VIDEO.busy)
    assert max(each.ended for each in moved.outcomes) == pytest.approx(VIDEO.busy + 3.0, abs=1.0)


def test_what_is_enough_is_enough_and_one_less_is_not() -> None:
    plan = Plan(target=THREE_TIMES)
    found = enough(lambda count: within(replace(plan, scale=Scale.fixed(count)), 4.0, 60.0, small=1, large=1), 0.95)
    assert within(replace(plan, scale=Scale.fixed(found)), 4.0, 60.0, small=1, large=1) >= 0.95
    assert within(replace(plan, scale=Scale.fixed(found - 1)), 4.0, 60.0, small=1, large=1) < 0.95
