"""The simulator: arrivals, admission, routing, replicas and their failures, on a clock that jumps from event to event.

Admission (`server/orders`), routing (`deploy/routing.py`) and the scheduler (`engine/`) are the real ones; only what
they decide about is made up. How long the first two take is measured as they are called.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from omnimuse.core.config import ParallelConfig, ScheduleConfig
from omnimuse.core.deadlines import Within, class_named, classes
from omnimuse.core.errors import CapacityError, ConfigError, DeadlineError
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.request import Request
from omnimuse.deploy.routing import least_loaded
from omnimuse.deploy.scale import LOOK, Scale, Scaler, Seen, to_move
from omnimuse.server.options import ServeOptions
from omnimuse.server.orders.admission import Admission, Ticket
from omnimuse.simulate.arrivals import Arrival
from omnimuse.simulate.replica import Chooser, Costs, Fifo, Job, Ours, Turn
from omnimuse.simulate.table import Kind, Table

Policy = Literal["ours", "fifo"]
End = Literal["ok", "refused", "late", "lost"]
TRIES = 2
"""How often a request is drawn before it is taken to end its workers (`deploy/pool.py`)."""


@dataclass(frozen=True)
class Failures:
    """A rank fails once in `every` seconds on the average (None: never); its replica is back `away` seconds later."""

    every: float | None = None
    away: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What serves: so many replicas of so many ranks, who runs next (`policy`), and what is taken on.

    Those of an `elastic` replica are divided as its requests want it. One that is added is ready after `start` seconds.
    `max_queue` and `max_wait` are those of `omnimuse serve`. As first in, first out is run elsewhere, it refuses none.
    """

    scale: Scale = Scale()
    ranks: int = 1
    policy: Policy = "ours"
    target: Within = Within()
    failures: Failures = Failures()
    schedule: ScheduleConfig = ScheduleConfig()
    max_queue: int = 256
    max_wait: float = 600.0
    start: float = 30.0
    elastic: bool = False

    def __post_init__(self) -> None:
        for name in ("ranks", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed; use at least 1")

    def wanted(self, arrival: Arrival, kind: Kind) -> float | None:
        """In how many seconds `arrival` wants an answer."""
        if isinstance(arrival.target, str):
            return class_named(arrival.target, classes(self.schedule.deadlines)).after(kind.alone)
        return self.target.after(kind.alone) if arrival.target is None else arrival.target


@dataclass(frozen=True)
class Outcome:
    """How a request ended, when, and how long it may have taken."""

    arrival: Arrival
    end: End
    ended: float
    target: float | None

    @property
    def latency(self) -> float:
        """Seconds from when it came."""
        return self.ended - self.arrival.at

    @property
    def within(self) -> bool:
        """Whether it was served in time."""
        return self.end == "ok" and (self.target is None or self.latency <= self.target)


@dataclass
class Run:
    """What was seen: every outcome, seconds that replicas were there, and busy, the most of them at once, those that
    failed, and the real seconds of every decision.
    """

    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    there: float = 0.0
    most: int = 0
    busy: float = 0.0
    failed: int = 0
    admitting: list[float] = field(default_factory=list)
    routing: list[float] = field(default_factory=list)
    scheduling: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Replica:
    """One replica, there since `since`. `life` counts its lives: what was planned for an earlier one is void."""

    chooser: Chooser
    since: float = 0.0
    open: bool = True
    holder: str | None = None
    turn: Turn = Turn()
    life: int = 0

    @property
    def ticking(self) -> bool:
        """Whether it is at work."""
        return bool(self.turn.jobs)

    @property
    def waiting(self) -> list[Job]:
        """What has not begun here, the last to come last."""
        return [job for job in self.chooser.jobs.values() if not job.done and job not in self.turn.jobs]

    @property
    def load(self) -> int:
        """Requests in it."""
        return len(self.chooser.jobs)


class Fleet:
    """One run; `simulate` is the way to it."""

    def __init__(self, plan: Plan, table: Table) -> None:
        self.run = Run(plan)
        self._plan, self._table, self._now = plan, table, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._chance = random.Random(f"fleet {plan.failures.seed}")
        parallel = ParallelConfig(ulysses=plan.ranks, elastic=plan.elastic)
        teams = {plan.ranks // count: table.share(plan.ranks // count) for count in parallel.divisions}
        costs = Costs(table.share(plan.ranks), table.together, teams if plan.elastic else {})
        self._new: Callable[[], Chooser] = partial(Fifo, costs)
        if plan.policy == "ours":
            self._new = partial(Ours, costs, plan.schedule, self.run.scheduling)
        self._replicas: list[Replica] = []
        self._scaler = Scaler(plan.scale)
        options = ServeOptions(Path(), table.model, max_queue=plan.max_queue, max_wait=plan.max_wait)
        most, step = plan.schedule.max_running, table.frame_step
        self._admission = Admission(options, plan.scale.least, lambda: self._now, most, step)
        self._admission.missed = lambda: self._scaler.missed(self._now)
        self._tickets: dict[str, Ticket] = {}
        self._waiting: list[Job] = []
        self._coming = self._unfinished = self._arrived = 0

    def play(self, arrivals: Iterable[Arrival]) -> Run:
        """Everything until the last request has ended."""
        coming = iter(arrivals)
        self._expect(coming)
        for _ in range(self._plan.scale.least):
            self._hire(start=0.0)
        if self._plan.scale.moves:
            self._at(LOOK, self._look)
        while self._events and (self._coming or self._unfinished):
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        self.run.there += sum(self._now - replica.since for replica in self._replicas)
        return self.run

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, happen))

    # -- requests --------------------------------------------------------------------------------------------------

    def _expect(self, coming: Iterator[Arrival]) -> None:
        arrival = next(coming, None)
        self._coming = int(arrival is not None)
        if arrival is not None:
            self._at(arrival.at, partial(self._arrive, arrival, coming))

    def _arrive(self, arrival: Arrival, coming: Iterator[Arrival]) -> None:
        self._expect(coming)
        self._unfinished, self._arrived = self._unfinished + 1, self._arrived + 1
        kind = self._table.kind(arrival.kind)
        target = self._plan.wanted(arrival, kind)
        job = Job(arrival, kind, request_of(arrival, kind, self._arrived, target))
        if self._plan.policy == "ours":
            began = time.perf_counter()
            try:
                self._tickets[job.request.id] = self._admission.enter(job.request)
            except (CapacityError, DeadlineError):
                self._end(job, "refused")
                return
            finally:
                self.run.admitting.append(time.perf_counter() - began)
        self._place(job)

    def _place(self, job: Job) -> None:
        began = time.perf_counter()
        replica = least_loaded(self._replicas, self._chance)
        self.run.routing.append(time.perf_counter() - began)
        if replica is None:
            self._waiting.append(job)
            return
        try:
            replica.chooser.add(job, self._now)
        except CapacityError:
            self._end(job, "refused")
            return
        if not replica.ticking:
            self._tick(replica)
        if self._plan.scale.moves and all(each.load for each in self._replicas if each.open):
            self._scaler.busy()

    def _end(self, job: Job, end: End) -> None:
        self._unfinished -= 1
        after = job.kind.beside if end == "ok" else 0.0
        if (ticket := self._tickets.pop(job.request.id, None)) is not None:
            ticket.close(served=end == "ok")
        target = self._plan.wanted(job.arrival, job.kind)
        self.run.outcomes.append(Outcome(job.arrival, end, self._now + after, target))

    # -- replicas --------------------------------------------------------------------------------------------------

    def _tick(self, replica: Replica) -> None:
        turn = replica.chooser.turn(self._now)
        for job in turn.late:
            self._end(job, "late")
        replica.turn = turn
        if turn.jobs:
            self._at(self._now + turn.seconds, partial(self._tock, replica, replica.life, turn))

    def _tock(self, replica: Replica, life: int, turn: Turn) -> None:
        if replica.life != life:
            return
        replica.turn = Turn()
        self.run.busy += turn.seconds
        for job in turn.jobs:
            job.done += 1
            if job.finished:
                replica.chooser.finish(job)
                self._end(job, "ok")
            elif job.done <= job.kind.steps and (ticket := self._tickets.get(job.request.id)) is not None:
                ticket.step()
        self._tick(replica)

    def _doom(self, replica: Replica) -> None:
        """Decide when `replica` fails next."""
        if self._plan.failures.every is not None:
            rate = self._plan.ranks / self._plan.failures.every
            self._at(self._now + self._chance.expovariate(rate), partial(self._fail, replica))

    def _fail(self, replica: Replica) -> None:
        if replica not in self._replicas:
            return
        self.run.failed += 1
        lost = list(replica.chooser.jobs.values())
        replica.chooser, replica.open, replica.turn, replica.life = self._new(), False, Turn(), replica.life + 1
        self._at(self._now + self._plan.failures.away, partial(self._return, replica))
        for job in lost:
            job.done, job.losses = 0, job.losses + 1
            if job.losses >= TRIES or (job.request.deadline or self._now + 1) <= self._now:
                self._end(job, "lost")
            else:
                self._place(job)

    def _return(self, replica: Replica) -> None:
        if replica not in self._replicas:
            return
        replica.open = True
        self._staffed()
        self._doom(replica)
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            self._place(job)

    # -- more of them, and fewer -----------------------------------------------------------------------------------

    def _look(self) -> None:
        """As `Pool` looks, as often."""
        self._at(self._now + LOOK, self._look)
        idle = [replica for replica in self._replicas if replica.open and not replica.load]
        waiting = [job.arrival.at for replica in self._replicas for job in replica.waiting]
        waiting += [job.arrival.at for job in self._waiting]
        coming = sum(not replica.open for replica in self._replicas)
        before = len(self._replicas)
        wanted = self._scaler.wanted(self._now, Seen(before, coming, len(idle), waiting))
        for _ in range(wanted - before):
            self._hire(self._plan.start)
        if wanted < before:
            self._dismiss(next((each for each in self._replicas if not each.open), idle[-1]))
        for job in to_move(self._replicas, lambda replica: replica.waiting):
            next(replica for replica in self._replicas if job.request.id in replica.chooser.jobs).chooser.finish(job)
            self._place(job)

    def _hire(self, start: float) -> None:
        replica = Replica(self._new(), self._now, open=not start)
        self._replicas.append(replica)
        self.run.most = max(self.run.most, len(self._replicas))
        if start:
            self._at(self._now + start, partial(self._return, replica))
        else:
            self._doom(replica)

    def _dismiss(self, replica: Replica) -> None:
        self._replicas.remove(replica)
        self.run.there += self._now - replica.since
        self._staffed()

    def _staffed(self) -> None:
        self._admission.width = max(self._plan.scale.least, sum(replica.open for replica in self._replicas))


def request_of(arrival: Arrival, kind: Kind, number: int, target: float | None) -> Request:
    """The request that comes with `arrival`, as a door would have made it."""
    params = DiffusionParams(
        width=kind.width, height=kind.height, num_frames=kind.frames, num_inference_steps=kind.steps, seed=number
    )
    deadline = None if target is None else arrival.at + target
    name = f"{number}"
    return Request(
        id=name,
        prompt=name,
        negative_prompt=None,
        params=params,
        extra=FamilyParams(),
        deadline=deadline,
        tenant=arrival.tenant,
    )


def simulate(plan: Plan, table: Table, arrivals: Iterable[Arrival]) -> Run:
    """What comes of `arrivals` where `plan` serves them."""
    return Fleet(plan, table).play(arrivals)
