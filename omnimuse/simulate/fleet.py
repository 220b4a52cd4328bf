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

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import CapacityError, ConfigError, DeadlineError
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.request import Request
from omnimuse.deploy.routing import least_loaded
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
class Target:
    """When an answer is wanted: `seconds` after its request came, or `times` what it takes alone; neither: never."""

    seconds: float | None = None
    times: float | None = None

    def of(self, arrival: Arrival, kind: Kind) -> float | None:
        """Seconds after `arrival`."""
        if arrival.target is not None:
            return arrival.target
        return self.times * kind.alone if self.times is not None else self.seconds


@dataclass(frozen=True)
class Failures:
    """A rank fails once in `every` seconds on the average (None: never); its replica is back `away` seconds later."""

    every: float | None = None
    away: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """What serves: so many replicas of so many ranks, who runs next (`policy`), and what is taken on.

    `max_queue` and `max_wait` are those of `omnimuse serve`. As first in, first out is run elsewhere, it refuses none.
    """

    replicas: int = 1
    ranks: int = 1
    policy: Policy = "ours"
    target: Target = Target()
    failures: Failures = Failures()
    schedule: ScheduleConfig = ScheduleConfig()
    max_queue: int = 256
    max_wait: float = 600.0

    def __post_init__(self) -> None:
        for name in ("replicas", "ranks", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed; use at least 1")


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
    """What was seen: every outcome, seconds that replicas were busy, replicas that failed, and the real seconds of
    every decision.
    """

    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    busy: float = 0.0
    failed: int = 0
    admitting: list[float] = field(default_factory=list)
    routing: list[float] = field(default_factory=list)
    scheduling: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Replica:
    """One replica. `life` counts its lives: what was planned for an earlier one is void."""

    chooser: Chooser
    open: bool = True
    holder: str | None = None
    ticking: bool = False
    life: int = 0

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
        costs = Costs(table.share(plan.ranks), table.together)
        self._new: Callable[[], Chooser] = partial(Fifo, costs)
        if plan.policy == "ours":
            self._new = partial(Ours, costs, plan.schedule, self.run.scheduling)
        self._replicas = [Replica(self._new()) for _ in range(plan.replicas)]
        options = ServeOptions(Path(), table.model, max_queue=plan.max_queue, max_wait=plan.max_wait)
        most, step = plan.schedule.max_running, table.frame_step
        self._admission = Admission(options, plan.replicas, lambda: self._now, most, step)
        self._tickets: dict[str, Ticket] = {}
        self._waiting: list[Job] = []
        self._coming = self._unfinished = self._arrived = 0

    def play(self, arrivals: Iterable[Arrival]) -> Run:
        """Everything until the last request has ended."""
        coming = iter(arrivals)
        self._expect(coming)
        for replica in self._replicas:
            self._doom(replica)
        while self._events and (self._coming or self._unfinished):
            self._now, _, happen = heapq.heappop(self._events)
            happen()
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
        target = self._plan.target.of(arrival, kind)
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

    def _end(self, job: Job, end: End) -> None:
        self._unfinished -= 1
        after = job.kind.beside if end == "ok" else 0.0
        if (ticket := self._tickets.pop(job.request.id, None)) is not None:
            ticket.close(served=end == "ok")
        target = self._plan.target.of(job.arrival, job.kind)
        self.run.outcomes.append(Outcome(job.arrival, end, self._now + after, target))

    # -- replicas --------------------------------------------------------------------------------------------------

    def _tick(self, replica: Replica) -> None:
        turn = replica.chooser.turn(self._now)
        for job in turn.late:
            self._end(job, "late")
        replica.ticking = bool(turn.jobs)
        if turn.jobs:
            self._at(self._now + turn.seconds, partial(self._tock, replica, replica.life, turn))

    def _tock(self, replica: Replica, life: int, turn: Turn) -> None:
        if replica.life != life:
            return
        self.run.busy += turn.seconds
        for job in turn.jobs:
            job.done += 1
            if job.finished:
                replica.chooser.finish(job)
                self._end(job, "ok")
            elif (ticket := self._tickets.get(job.request.id)) is not None:
                ticket.step()
        self._tick(replica)

    def _doom(self, replica: Replica) -> None:
        """Decide when `replica` fails next."""
        if self._plan.failures.every is not None:
            rate = self._plan.ranks / self._plan.failures.every
            self._at(self._now + self._chance.expovariate(rate), partial(self._fail, replica))

    def _fail(self, replica: Replica) -> None:
        self.run.failed += 1
        lost = list(replica.chooser.jobs.values())
        replica.chooser, replica.open, replica.ticking, replica.life = self._new(), False, False, replica.life + 1
        self._at(self._now + self._plan.failures.away, partial(self._return, replica))
        for job in lost:
            job.done, job.losses = 0, job.losses + 1
            if job.losses >= TRIES or (job.request.deadline or self._now + 1) <= self._now:
                self._end(job, "lost")
            else:
                self._place(job)

    def _return(self, replica: Replica) -> None:
        replica.open = True
        self._doom(replica)
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            self._place(job)


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
