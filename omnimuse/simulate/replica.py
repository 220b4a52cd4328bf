"""One replica on the simulator's clock: what each of its ticks takes, and who is finished after it.

`Ours` asks the engine's own scheduler and the runner's own judgement of company what a tick is made of. `Fifo` is what
most engines do: first in, first out, with others of the same kind that have come by then, where that saves time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.request import Request
from omnimuse.engine.scheduler import Scheduler
from omnimuse.simulate.arrivals import Arrival
from omnimuse.simulate.table import Kind
from omnimuse.worker.pace import GAIN, Offer, Pace, Party, Price
from omnimuse.worker.teams import joins, teams_for

NETWORK, DECODER = "network", "decoder"
MOST_TOGETHER = 8
"""Requests that first in, first out takes at once."""


@dataclass(eq=False)
class Job:
    """A request on its way: how many steps, and parts after them, are done, and how often it lost its replica."""

    arrival: Arrival
    kind: Kind
    request: Request
    done: int = 0
    losses: int = 0

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return self.done >= self.kind.steps + self.kind.parts

    @property
    def steps(self) -> bool:
        """Whether a step comes next."""
        return self.done < self.kind.steps


@dataclass(frozen=True)
class Costs:
    """What steps take here, of one rank's alone: `share` by the ranks, and `together` in company besides.

    `teams` are what a step of so many ranks takes, for every number in which they may be divided.
    """

    share: float
    together: float
    teams: Mapping[int, float] = field(default_factory=dict)

    def seconds(self, jobs: Sequence[Job]) -> float:
        """Seconds of what comes next of each of `jobs`: a step, a part after the steps, what goes with them."""
        return self.forward([job for job in jobs if job.steps]) + sum(map(_besides, jobs))

    def forward(self, jobs: Sequence[Job]) -> float:
        """Seconds of a step of each; where ranks may be divided, of as many teams as end it soonest."""
        if self.teams and jobs:
            return teams_for([job.kind.step for job in jobs], self.divisions, self.teams.__getitem__)[1]
        apart = sum(job.kind.step for job in jobs) * self.share
        if len(jobs) < 2:
            return apart
        fixed = [job.kind.fixed for job in jobs if job.kind.fixed is not None]
        if len(fixed) < len(jobs):
            return apart * self.together
        return apart - (sum(fixed) - max(fixed)) * self.share

    @property
    def divisions(self) -> list[int]:
        """Into how many teams ranks may be divided."""
        return sorted(max(self.teams) // ranks for ranks in self.teams)

    def gains(self, job: Job) -> bool:
        """Whether two of this kind take less in company than apart, by as much as is worth it."""
        return self.forward([job, job]) <= 2 * (1 - GAIN) * self.forward([job])


def _besides(job: Job) -> float:
    """Seconds of what comes before the first step, or after the last, as far as it is next."""
    kind, found = job.kind, 0.0
    if job.done == 0:
        found += kind.once * kind.before
    if job.done >= (kind.steps if kind.parts else kind.steps - 1):
        found += kind.once * (1 - kind.before) / max(1, kind.parts)
    return found


@dataclass(frozen=True)
class Turn:
    """A tick: who steps in it, who is late and was let go before it, and the seconds it takes."""

    jobs: tuple[Job, ...] = ()
    late: tuple[Job, ...] = ()
    seconds: float = 0.0


class Chooser(Protocol):
    """What decides the ticks of one replica."""

    jobs: dict[str, Job]

    def add(self, job: Job, now: float) -> None:
        """Take a request in; CapacityError where there is no room."""
        ...

    def turn(self, now: float) -> Turn:
        """The next tick; empty if there is nothing to do."""
        ...

    def finish(self, job: Job) -> None:
        """All of `job` is done, or it goes elsewhere before its first step."""
        ...


class Ours:
    """The engine's choice. `deciding` is how long the scheduler took for each tick, in seconds of the real clock."""

    def __init__(self, costs: Costs, config: ScheduleConfig, deciding: list[float]) -> None:
        self.jobs: dict[str, Job] = {}
        self._costs, self._deciding = costs, deciding
        self._scheduler, self._pace = Scheduler(config), Pace()
        self._always = config.company == "always"

    def add(self, job: Job, now: float) -> None:
        """Take a request in; CapacityError where the queue is full."""
        self._scheduler.add(job.request, job.kind.work, now)
        self.jobs[job.request.id] = job

    def turn(self, now: float) -> Turn:
        """The next tick, as `Engine.tick` plans it."""
        began = time.perf_counter()
        late = tuple(self.jobs[request_id] for request_id in self._scheduler.expired(now))
        for job in late:
            self.finish(job)
        pick = self._scheduler.pick(now, self._cost, self._joins)
        self._deciding.append(time.perf_counter() - began)
        jobs = tuple(self.jobs[state_id.split("/")[0]] for state_id in pick.run)
        if stepping := [job for job in jobs if job.steps]:
            self._pace.record(NETWORK, [job.kind.work for job in stepping], self._costs.forward(stepping))
        return Turn(jobs, late, self._costs.seconds(jobs))

    def finish(self, job: Job) -> None:
        """Forget a request."""
        self._scheduler.remove(job.request.id)
        del self.jobs[job.request.id]

    def _cost(self, state_id: str) -> Price | None:
        job = self.jobs[state_id.split("/")[0]]
        if job.steps:
            return Price(job.kind.work, NETWORK)
        return Price(job.kind.work, DECODER) if job.kind.parts > 1 else None

    def _joins(self, party: Party, offer: Offer) -> bool:
        if self._costs.teams and not self._always:
            return joins([*party.offers, offer], self._costs.divisions, self._costs.teams.__getitem__)
        if DECODER in party.networks | {offer.network}:
            return self._always
        return self._always or self._pace.pays(NETWORK, party, offer)


@dataclass
class Fifo:
    """First in, first out: who has begun goes on to the end."""

    costs: Costs
    jobs: dict[str, Job] = field(default_factory=dict)
    _queue: deque[Job] = field(default_factory=deque)
    _running: list[Job] = field(default_factory=list)

    def add(self, job: Job, now: float) -> None:
        """Queue a request; there is always room."""
        self.jobs[job.request.id] = job
        self._queue.append(job)

    def turn(self, now: float) -> Turn:
        """One step of those that are at it."""
        if not self._running and self._queue:
            first = self._queue.popleft()
            most = MOST_TOGETHER if self.costs.gains(first) else 1
            alike = [job for job in self._queue if job.kind == first.kind][: most - 1]
            for job in alike:
                self._queue.remove(job)
            self._running = [first, *alike]
        return Turn(tuple(self._running), (), self.costs.seconds(self._running))

    def finish(self, job: Job) -> None:
        """Forget a request."""
        (self._running if job in self._running else self._queue).remove(job)
        del self.jobs[job.request.id]
