"""The simulator beside the engine that it stands for: `python -m benchmarks.simulated`.

One engine draws random pictures and videos that come at the same moments as in the simulator, from light load to
overload: as ours schedules, behind the server's admission, and first in, first out. Printed are the shares of requests
in time, of both, and the simulator's goodput over the real one. What work takes is measured of the same engine right
before and after every load, kind by kind, alone and in company; what the simulator is told lies between the two.

Time is what this thread computes, by the processor's clock, and pauses between requests are left out: so others who use
the machine count as little as can be. They make a core slower, too, by half at times: between ticks a small network is
timed, and a second is one in which it could be run as often as at the beginning. With --wall it is the wall's clock,
which wants a machine to itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median

import torch

from omnimuse import Ask, Config, DiffusionParams, Done, ModelConfig
from omnimuse.core.config import HostConfig, ScheduleConfig
from omnimuse.core.deadlines import Within
from omnimuse.core.errors import CapacityError, DeadlineError
from omnimuse.core.output import Event, Failed, Progress
from omnimuse.core.request import Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.server.options import ServeOptions
from omnimuse.server.orders.admission import Admission, Ticket
from omnimuse.simulate.arrivals import Arrival, Mix, poisson
from omnimuse.simulate.figures import Figures, summarize
from omnimuse.simulate.fleet import End, Outcome, Plan, Policy, Run, simulate
from omnimuse.simulate.replica import Costs, Fifo, Job
from omnimuse.simulate.table import Kind, Table
from omnimuse.worker.clock import HostClock
from omnimuse.worker.pace import Pace

CLOSE = 0.15
"""How far apart the two may be, of the real one."""
STEADY = 0.1
"""How much the machine's speed may change while a load runs."""
PROBES = 5
"""Of the machine's speed, whose median counts."""
CROWD = 4
"""Requests of a kind that step together where company is measured."""
WIDTH, LAYERS = 128, 2
"""Of the network; a step takes milliseconds, most of them in its products."""
MEASURED = ("step", "once", "before", "fixed")
ASKED = {
    "picture": DiffusionParams(height=64, width=64, num_frames=1, num_inference_steps=6),
    "large": DiffusionParams(height=128, width=128, num_frames=1, num_inference_steps=6),
    "video": DiffusionParams(height=96, width=96, num_frames=17, num_inference_steps=10),
}
MIXES: Mapping[str, Mapping[str, float]] = {
    "two sizes": {"picture": 1.0, "large": 1.0},
    "pictures and videos": {"picture": 10.0, "large": 4.0, "video": 1.0},
}


class Clock:
    """Seconds of work at the speed that the machine had at first, and of pauses that were skipped.

    `probe` is some work, always the same, that `tune` times; None: the machine's speed is taken to be always the same.
    """

    def __init__(self, seconds: Callable[[], float], probe: Callable[[], object] | None = None) -> None:
        self._seconds, self._probe = seconds, probe
        self._known, self._since = 0.0, seconds()
        self._rate, self._usual = 1.0, 0.0
        self._taken: deque[float] = deque(maxlen=PROBES)
        if probe is not None:
            self._usual = median(self._time(probe) for _ in range(20 * PROBES))

    def __call__(self) -> float:
        return self._known + (self._seconds() - self._since) * self._rate

    def skip_to(self, moment: float) -> None:
        """It is `moment` now, if it was not yet."""
        self._known += max(0.0, moment - self())

    def tune(self) -> None:
        """Go as the machine goes now; this takes no time."""
        self._known = self()
        if self._probe is not None:
            self._taken.append(self._time(self._probe))
            self._rate = self._usual / median(self._taken)
        self._since = self._seconds()

    def _time(self, work: Callable[[], object]) -> float:
        began = self._seconds()
        work()
        return self._seconds() - began


def some_work() -> Callable[[], object]:
    """What a step is made of, in small: products, norms and the calls of them. About a millisecond."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True).eval()
    hidden = torch.randn(2, 64, WIDTH)

    def work() -> object:
        with torch.inference_mode():
            return layer(hidden)

    return work


@dataclass
class Machine:
    """Two engines over one checkpoint: in `shared` company is measured, in `always` requests always share."""

    clock: Clock
    measured: Engine
    always: Engine
    tokens: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    @staticmethod
    def build(folder: Path, clock: Clock) -> Machine:
        """The engines, on `clock`."""
        from diffusers import WanTransformer3DModel

        from tests.checkpoints import parts, wan

        wan.build(folder, "2.1")
        parts.save_module(
            folder,
            "transformer",
            0,
            lambda: WanTransformer3DModel(
                num_attention_heads=4, attention_head_dim=WIDTH // 4, in_channels=16, out_channels=16,
                text_dim=wan.TEXT_WIDTH, freq_dim=64, ffn_dim=4 * WIDTH, num_layers=LAYERS, rope_max_seq_len=64,
            ),
        )  # fmt: skip
        model = ModelConfig(str(folder), dtype="float32", device="cpu")
        schedules = (ScheduleConfig(tier="fast"), ScheduleConfig(tier="fast", company="always"))
        measured, always = (
            afresh(start(Config(model, schedule=each, host=HostConfig(threads=1))), clock) for each in schedules
        )
        made = Machine(clock, measured, always)
        made.tokens = {name: measured.runner.tokens(made.request(measured, name)) for name in ASKED}
        return made

    def request(self, engine: Engine, kind: str, deadline: float | None = None) -> Request:
        """One of a kind; each has a prompt of its own, so that nothing is known of it."""
        number = next(self.numbers)
        ask = Ask(f"a red circle, number {number}", replace(ASKED[kind], seed=number, guidance_scale=1.0))
        return replace(engine.make_request(ask), deadline=deadline)

    # -- what work takes -------------------------------------------------------------------------------------------

    def table(self, samples: int) -> Table:
        """What every kind takes now."""
        kinds = {}
        for name, p in ASKED.items():
            alone = [self._ticks(name, 1) for _ in range(samples)]
            crowd = [self._ticks(name, CROWD) for _ in range(samples)]
            step, shared = (
                median(x for ticks in runs for x in ticks[1 : p.num_inference_steps]) for runs in (alone, crowd)
            )
            assert p.width and p.height and p.num_frames and p.num_inference_steps
            first = max(0.0, median(ticks[0] for ticks in alone) - step)
            last = median(sum(ticks[p.num_inference_steps :]) for ticks in alone)
            fixed = min((CROWD * step - shared) / (CROWD - 1), 0.99 * step)
            kinds[name] = Kind(
                p.width, p.height, p.num_inference_steps, step, first + last, frames=p.num_frames,
                tokens=self.tokens[name], before=first / max(1e-9, first + last), fixed=fixed,
                parts=len(alone[0]) - p.num_inference_steps,
            )  # fmt: skip
        return Table("random", kinds)

    def _ticks(self, kind: str, many: int) -> list[float]:
        """Seconds of every tick of so many requests that come together."""
        for _ in range(many):
            self.always.submit(self.request(self.always, kind))
        found = []
        while not self.always.idle:
            self.clock.tune()
            began = self.clock()
            self.always.tick()
            found.append(self.clock() - began)
        return found

    # -- loads -----------------------------------------------------------------------------------------------------

    def ours(self, plan: Plan, table: Table, arrivals: Sequence[Arrival]) -> Run:
        """What becomes of `arrivals` here, behind the server's admission."""
        return Load(self, plan, table).play(arrivals)

    def fifo(self, plan: Plan, table: Table, arrivals: Sequence[Arrival]) -> Run:
        """The same first in, first out, with those of one kind that have come by then where that saves time."""
        run, chooser, waiting, going = Run(plan), Fifo(Costs(1.0, table.together)), list(arrivals), dict[str, Job]()
        began = self.clock()
        while waiting or chooser.jobs:
            if not chooser.jobs:
                self.clock.skip_to(began + waiting[0].at)
            while waiting and began + waiting[0].at <= self.clock():
                arrival = waiting.pop(0)
                request = self.request(self.always, arrival.kind)
                chooser.add(Job(arrival, table.kind(arrival.kind), request), arrival.at)
            for job in chooser.turn(self.clock()).jobs:
                if job.request.id not in going:
                    going[job.request.id] = job
                    self.always.submit(job.request)
            self.clock.tune()
            for event in self.always.tick():
                if isinstance(event, Done | Failed):
                    assert isinstance(event, Done), event
                    job = going.pop(event.request_id)
                    chooser.finish(job)
                    target = plan.wanted(job.arrival, job.kind)
                    run.outcomes.append(Outcome(job.arrival, "ok", self.clock() - began, target))
        run.there = self.clock() - began
        return run


def afresh(engine: Engine, clock: Clock) -> Engine:
    """An engine that has measured nothing yet, as the simulator's has, over the same weights."""
    engine.runner.clock = engine.runner.forwards.clock = HostClock(clock)
    engine.runner.forwards.pace = Pace()
    return Engine(engine.runner, engine.door, clock)


class Load:
    """One load on the engine, as a server has it: its admission decides when a request comes, the engine ticks."""

    def __init__(self, machine: Machine, plan: Plan, table: Table) -> None:
        self._machine, self._plan, self._table = machine, plan, table
        self._engine, self._clock = afresh(machine.measured, machine.clock), machine.clock
        self._began = self._now = machine.clock()
        options = ServeOptions(Path(), table.model, max_queue=plan.max_queue, max_wait=plan.max_wait)
        together, step = plan.schedule.max_running, table.frame_step
        self._admission = Admission(options, 1, lambda: self._now, together, step)
        self._going: dict[str, tuple[Arrival, Ticket]] = {}
        self.run = Run(plan)

    def play(self, arrivals: Sequence[Arrival]) -> Run:
        """Everything until the last request has ended."""
        waiting = list(arrivals)
        while waiting or not self._engine.idle:
            if self._engine.idle:
                self._clock.skip_to(self._began + waiting[0].at)
            while waiting and self._began + waiting[0].at <= self._clock():
                self._arrive(waiting.pop(0))
            self._clock.tune()
            began = self._clock()
            events = self._engine.tick()
            self.run.busy += self._clock() - began
            # The front is another process: what came in the meantime was decided on before it heard of this tick.
            while waiting and self._began + waiting[0].at <= self._clock():
                self._arrive(waiting.pop(0))
            self._now = self._clock()
            for event in events:
                self._hear(event)
        self.run.there = self._clock() - self._began
        return self.run

    def _arrive(self, arrival: Arrival) -> None:
        self._now = self._began + arrival.at
        target = self._plan.wanted(arrival, self._table.kind(arrival.kind))
        deadline = None if target is None else self._now + target
        request = self._machine.request(self._engine, arrival.kind, deadline)
        try:
            ticket = self._admission.enter(request)
        except (CapacityError, DeadlineError):
            self._end(arrival, "refused")
            return
        self._going[request.id] = arrival, ticket
        self._engine.submit(request)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._going[event.request_id][1].step()
        elif isinstance(event, Done | Failed):
            arrival, ticket = self._going.pop(event.request_id)
            late = isinstance(event, Failed)
            assert not late or isinstance(event.error, DeadlineError), event
            ticket.close(served=not late)
            self._end(arrival, "late" if late else "ok")

    def _end(self, arrival: Arrival, end: End) -> None:
        target = self._plan.wanted(arrival, self._table.kind(arrival.kind))
        self.run.outcomes.append(Outcome(arrival, end, self._now - self._began, target))


def between(one: Table, two: Table) -> Table:
    """What lies in the middle of two measures."""
    kinds = {
        name: replace(kind, **{part: (getattr(kind, part) + getattr(two.kinds[name], part)) / 2 for part in MEASURED})
        for name, kind in one.kinds.items()
    }
    return replace(one, kinds=kinds)


def busy(table: Table, mix: Mapping[str, float]) -> float:
    """Seconds for which a request of the mix keeps an engine busy, alone."""
    return sum(table.kinds[name].busy * weight for name, weight in mix.items()) / sum(mix.values())


def compare(machine: Machine, args: argparse.Namespace) -> int:
    """Every mix and load, both ways; how many are too far apart although the machine was steady."""
    apart = 0
    machine.table(1)  # the first requests of all are slow
    before = machine.table(args.samples)
    for name, kind in before.kinds.items():
        print(
            f"{name}: {1000 * kind.step:.2f} ms a step, of which {1000 * (kind.fixed or 0):.2f} are shared in company; "
            f"{1000 * kind.once:.1f} ms besides; {kind.tokens} tokens"
        )
    print(
        f"{'':20} load  goodput, simulated/real: ours  fifo   in time, real: ours   fifo  gain   "
        f"simulated: ours   fifo  gain   slower"
    )
    for mix_name in args.mixes:
        mix = MIXES[mix_name]
        for load in args.loads:
            arrivals = list(
                poisson(load / busy(before, mix), args.requests * busy(before, mix) / load, Mix(mix, args.seed))
            )
            plans = {policy: Plan(policy=policy, target=Within(times=args.slo)) for policy in POLICIES}
            # Targets are the same moments in both: those of the table that was known when requests came.
            arrivals = [replace(each, target=args.slo * before.kinds[each.kind].alone) for each in arrivals]
            real = {
                "ours": summarize(machine.ours(plans["ours"], before, arrivals)),
                "fifo": summarize(machine.fifo(plans["fifo"], before, arrivals)),
            }
            after = machine.table(args.samples)
            told = between(before, after)
            made = {policy: summarize(simulate(plans[policy], told, arrivals)) for policy in POLICIES}
            slower, before = busy(after, mix) / busy(before, mix), after
            steady = abs(slower - 1) <= STEADY
            ratios = {policy: _ratio(made[policy], real[policy]) for policy in POLICIES}
            apart += steady and abs(ratios["ours"] - 1) > CLOSE
            print(
                _row(mix_name, load, ratios, real, made) + f"{slower:9.2f}{'' if steady else '  (not steady)'}",
                flush=True,
            )
    return apart


POLICIES: tuple[Policy, ...] = ("ours", "fifo")


def _ratio(made: Figures, real: Figures) -> float:
    return float(made["goodput"] / real["goodput"]) if real["goodput"] else float("inf")


def _row(mix: str, load: float, ratios: Mapping[Policy, float], *both: Mapping[Policy, Figures]) -> str:
    columns = [f"{mix:20}{load:5.2f}{ratios['ours']:31.2f}{ratios['fifo']:6.2f}"]
    for figures, gap in zip(both, (19, 16), strict=True):
        ours, fifo = figures["ours"]["within"], figures["fifo"]["within"]
        gain = f"{ours / fifo - 1:+6.0%}" if fifo else "     -"
        columns.append(f"{ours:{gap}.1%}{fifo:7.1%}{gain}")
    return "".join(columns)


def main() -> None:
    """Run it; ends with 1 if any load of ours is more than 15 % apart while the machine was steady."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--loads", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.25, 1.5], help="of what is possible"
    )
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES), help="of kinds (default: all)")
    parser.add_argument("--requests", type=int, default=120, help="of each load, about (default: 120)")
    parser.add_argument("--samples", type=int, default=4, help="of every kind, before and after a load (default: 4)")
    parser.add_argument("--slo", type=float, default=3.0, help="in time, of what a kind takes alone (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wall", action="store_true", help="the wall's clock instead of the processor's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(1)
        clock = Clock(time.monotonic) if args.wall else Clock(time.thread_time, some_work())
        machine = Machine.build(Path(folder) / "model", clock)
        apart = compare(machine, args)
    raise SystemExit(int(apart > 0))


if __name__ == "__main__":
    main()
