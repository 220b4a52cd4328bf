"""`Admission`: who may come in, judged by the speed that was measured; refused before any work where waiting is vain.

Every route and the job queue `enter` a request and hold the `Ticket` until it has ended. All is counted in cost units
(megapixels of all frames x evaluations x guidance branches, or thousands of tokens) and in seconds per unit, learnt
from finished work, so that "how long will this take" has an answer for any mix of sizes. Pure bookkeeping on one event
loop: no asyncio, no threads, no I/O. It must not know who draws, or how.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from omnimuse.core.errors import CapacityError
from omnimuse.core.params import TokenParams
from omnimuse.core.request import Request
from omnimuse.server.errors import DeadlineUnreachable
from omnimuse.server.options import ServeOptions
from omnimuse.server.orders.poison import Poison

SHORTEST_RETRY, LONGEST_RETRY = 1.0, 120.0
"""Seconds; clients ignore a longer Retry-After and come back at once."""
FOREVER = float("inf")
USUAL_TOKENS = 512
"""What an answer is taken to be long before it is known, where nobody bounds it."""
FIRST_RETRY = 2.0
"""Seconds, said while no speed has been measured."""


@dataclass(frozen=True)
class Load:
    """How much is in progress: requests, cost units left, seconds until all of it is done, unfinished per tenant.

    `expected_wait` and `seconds_per_cost` are None before anything was measured.
    """

    count: int
    cost: float
    expected_wait: float | None
    seconds_per_cost: float | None
    tenants: dict[str, int]


@dataclass
class Share:
    """What one tenant has in progress: requests, their cost units, and those left to do."""

    count: int = 0
    cost: float = 0.0
    left: float = 0.0


def steps(request: Request) -> int:
    """The steps of one output: evaluations, or the most tokens that are made."""
    extra = request.extra
    return (extra.max_tokens or USUAL_TOKENS) if isinstance(extra, TokenParams) else request.evaluations


def cost(request: Request, frame_step: int = 1) -> float:
    """Megapixels x frames x evaluations x outputs x guidance branches of `request`, or thousands of
    tokens; above 0.

    After the first, `frame_step` frames count as one: as many as the model's autoencoder makes one of.
    """
    p = request.params
    if isinstance(request.extra, TokenParams):
        return steps(request) * request.outputs / 1000
    megapixels = (p.width or 1024) * (p.height or 1024) / 1e6
    frames = 1 + ((p.num_frames or 1) - 1) / frame_step
    return megapixels * frames * request.evaluations * request.outputs * len(request.branches)


class Speed:
    """Seconds of one replica's time per cost unit, learnt while there is work; newer work counts more.

    `work` says how the time since the last call was spent, `done` what it brought. A stall (a worker that died or
    hung) is no measure of speed: a pause far longer than all open work should take is cut down to that.
    """

    KEEP = 0.97
    """What is left of older measures after each finished request: half after some twenty."""
    STALL = 8.0
    """How many times longer than expected a pause may be and still count in full."""

    def __init__(self) -> None:
        self._seconds = self._cost = self._pause = 0.0
        self._begun, self._ended = False, 0

    @property
    def seconds_per_cost(self) -> float | None:
        """None until something was measured."""
        return self._seconds / self._cost if self._cost > 0 and self._seconds > 0 else None

    def work(self, seconds: float) -> None:
        """Replicas were busy for that long, summed over them."""
        self._pause += seconds

    def forget(self, part: float) -> None:
        """This part (0..1) of the time since the last `done` went into work that nobody wanted any more."""
        self._pause *= 1.0 - part

    def done(self, cost: float, whole: float, finished: bool) -> None:
        """`cost` units are done; the open requests had `whole` at first; `finished` if one of them ended with that."""
        begun, self._begun = self._begun, True
        spent, self._pause = self._pause, 0.0
        if not begun and not finished:
            return  # the very first step may have waited for the model to load
        if (known := self.seconds_per_cost) is not None:
            spent = min(spent, self.STALL * known * whole)
        if spent > 0:  # not between requests of a batch that end together: the first has brought the time of them all
            fade, self._ended = self.KEEP**self._ended, 0
            self._seconds, self._cost = self._seconds * fade, self._cost * fade
        self._ended += finished
        self._seconds, self._cost = self._seconds + spent, self._cost + cost


class Ticket:
    """The place of one request, from its admission to its end; a context manager.

    Leaving it without an exception says that the request was served. Work that outlives a block calls `close`.
    """

    def __init__(self, admission: Admission, request: Request) -> None:
        self.tenant, self.deadline = request.tenant, FOREVER if request.deadline is None else request.deadline
        self.cost = self.left = admission.cost(request)
        self.stepped = False
        self._admission = admission
        self._unit = self.cost / (request.outputs * steps(request))
        self._reached: dict[tuple[int, str], int] = {}

    def step(self, count: int = 1) -> None:
        """So many evaluations for one output are done (steps of other stages need not be told)."""
        self.stepped = True
        self._admission.progress(self, min(self._unit * count, self.left))

    def reach(self, output: int, stage: str, step: int) -> None:
        """So many steps of a stage are done for an output: not every one is told, and some once more."""
        before = self._reached.get((output, stage), 0)
        self._reached[output, stage] = max(before, step)
        self.step(max(0, step - before))

    def close(self, served: bool) -> None:
        """The request has ended, `served` if with its result. Closing again does nothing."""
        self._admission.leave(self, served)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(served=kind is None)


class Admission:
    """Bounds what is in progress, by count and by time, fairly between tenants.

    `width` is how many requests run without sharing a replica (the replicas; it may be changed while some are
    away), `together` how many a replica works on at once: those share its time, the rest waits. `clock` is the
    clock of deadlines, in seconds, and `frame_step` the model's. `missed` is called when a request is refused for the
    work of others: with more replicas it would have been served.

    The engine does first what is wanted first (`engine/scheduler.py`). So a deadline waits for those of its tenant that
    are nearer, and nothing is taken on at the price of a deadline that was accepted.
    """

    STALE = 60.0
    """Seconds without a measure after which an idle server tries a request that it expects to be too slow."""

    def __init__(
        self,
        options: ServeOptions,
        width: int = 1,
        clock: Callable[[], float] = time.monotonic,
        together: int = 64,
        frame_step: int = 1,
    ) -> None:
        self.width = width
        self._frame_step = frame_step
        self._options, self._together, self._clock = options, together, clock
        self._tickets: dict[Ticket, None] = {}
        self._shares: dict[str, Share] = {}
        self._speed = Speed()
        self._now = self._measured = clock()
        self.poison = Poison(clock)
        self.missed: Callable[[], None] = lambda: None

    def enter(self, request: Request, patience: float | None = None) -> Ticket:
        """Take `request` on, whose client waits `patience` seconds at most (None: as long as the deadline allows).

        CapacityError, with the seconds after which there may be room, if too much is in progress; DeadlineUnreachable
        (a DeadlineError) if it would be served too late. Nothing is refused on time before a speed was measured.
        PoisonError if its like ended workers of late.
        """
        self._advance()
        self.poison.check(request)
        self.check_room(request.tenant)
        own = self.cost(request)
        wait, run = self._expect(own, request)
        try:
            self._check_wait(wait)
            if self._tickets or self._now - self._measured < self.STALE:
                self._check_time(request, patience, wait, run)
                self._check_promises(request, own)
        except (CapacityError, DeadlineUnreachable):
            if run <= self._given(request, patience):
                self.missed()
            raise
        return self._admit(request)

    def cost(self, request: Request) -> float:
        """The cost units of `request` here."""
        return cost(request, self._frame_step)

    def check_room(self, tenant: str) -> None:
        """CapacityError while `tenant` can get no place, whatever it asks for; takes none."""
        most, held = self._options.max_queue, len(self._tickets)
        if held >= most:
            raise CapacityError(
                f"the server has {held} unfinished requests and takes no more than {most}; try again later",
                self._next_room(),
            )
        mine = self._shares.get(tenant, Share()).count
        if 2 * held > most and mine >= self._fair_share(tenant):
            raise CapacityError(
                f"this key has {mine} unfinished requests and the server is busy; let some of them finish first",
                self._next_room(),
            )

    def adopt(self, request: Request) -> Ticket:
        """Take on what was accepted earlier, such as a job found at the start; never refused."""
        self._advance()
        return self._admit(request)

    def seconds(self, request: Request) -> float | None:
        """How long `request` would run if it were alone; None before anything was measured."""
        pace = self._speed.seconds_per_cost
        return None if pace is None else pace * self.cost(request)

    def promised(self, request: Request) -> Request:
        """`request` with its deadline, if that depends on what it takes alone; without one while that is unknown."""
        return request.promised(self.seconds(request), self._clock())

    def load(self) -> Load:
        """What is in progress now."""
        pace, left = self._speed.seconds_per_cost, self._left()
        wait = None if pace is None else pace * left / self.width
        counts = {name: share.count for name, share in self._shares.items()}
        return Load(len(self._tickets), left, wait, pace, counts)

    def progress(self, ticket: Ticket, done: float) -> None:
        """`done` cost units of an open ticket are done; called by `Ticket.step`."""
        if ticket in self._tickets:
            self._advance()
            self._measure(ticket, done, finished=False)

    def leave(self, ticket: Ticket, served: bool) -> None:
        """An open ticket ends; called by `Ticket.close`."""
        if ticket not in self._tickets:
            return
        self._advance()
        if served:
            self._measure(ticket, ticket.left, finished=True)
        elif not ticket.stepped:
            self._speed.forget(ticket.cost / sum(share.cost for share in self._shares.values()))
        del self._tickets[ticket]
        share = self._shares[ticket.tenant]
        share.count, share.cost, share.left = share.count - 1, share.cost - ticket.cost, share.left - ticket.left
        if not share.count:
            del self._shares[ticket.tenant]
        if not self._tickets:
            self._speed.forget(1.0)

    def _admit(self, request: Request) -> Ticket:
        ticket = Ticket(self, request)
        self._tickets[ticket] = None
        share = self._shares.setdefault(ticket.tenant, Share())
        share.count, share.cost, share.left = share.count + 1, share.cost + ticket.cost, share.left + ticket.left
        return ticket

    def _advance(self) -> None:
        now = self._clock()
        self._speed.work((now - self._now) * min(len(self._tickets), self.width))
        self._now = now

    def _measure(self, ticket: Ticket, done: float, finished: bool) -> None:
        self._speed.done(done, sum(share.cost for share in self._shares.values()), finished)
        ticket.left -= done
        self._shares[ticket.tenant].left -= done
        self._measured = self._now

    def _left(self) -> float:
        return max(0.0, sum(share.left for share in self._shares.values()))

    def _fair_share(self, tenant: str) -> float:
        """How many requests a tenant may hold on a busy server. One that is alone leaves a quarter of the room to a
        second, except where there are no keys, and so only ever one tenant."""
        present = len(self._shares.keys() | {tenant})
        return self._options.max_queue * (0.75 if present == 1 and tenant else 1 / present)

    def _check_wait(self, wait: float) -> None:
        if wait > self._options.max_wait:
            raise CapacityError(
                f"about {wait:.0f} s of work are ahead of this request, and at most {self._options.max_wait:.0f} s "
                "may be; try again later",
                _retry(wait - self._options.max_wait),
            )

    def _check_time(self, request: Request, patience: float | None, wait: float, run: float) -> None:
        given = self._given(request, patience)
        if wait + run > given:
            raise DeadlineUnreachable(
                f"this would take about {wait + run:.1f} s ({wait:.1f} s of them waiting), and there are only "
                f"{max(0.0, given):.1f} s; ask for less, allow more time, or try again later"
            )

    def _given(self, request: Request, patience: float | None) -> float:
        """Seconds in which an answer is wanted."""
        deadline = FOREVER if request.deadline is None else request.deadline - self._now
        return deadline if patience is None else min(deadline, patience)

    def _check_promises(self, request: Request, own: float) -> None:
        """Refuse what would make another request of its tenant late, whose deadline is further off."""
        pace, deadline = self._speed.seconds_per_cost, request.deadline
        if pace is None or deadline is None or len(self._tickets) < self.width:
            return
        mine = [each for each in self._tickets if each.tenant == request.tenant and each.deadline < FOREVER]
        before = sum(each.left for each in mine if each.deadline <= deadline)
        for each in sorted((each for each in mine if each.deadline > deadline), key=lambda each: each.deadline):
            before += each.left
            given = each.deadline - self._now
            if pace * before / self.width <= given < pace * (before + own) / self.width:
                raise DeadlineUnreachable(
                    f"this would take about {pace * own:.1f} s, and make a request late that was accepted before; "
                    "ask for less, allow more time, or try again later"
                )

    def _expect(self, own: float, request: Request) -> tuple[float, float]:
        """Seconds that work of `own` units would wait for others, and seconds that it takes itself; 0 if unknown."""
        pace = self._speed.seconds_per_cost
        if pace is None:
            return 0.0, 0.0
        ahead = 0.0
        if len(self._tickets) >= self.width:
            ahead = self._ahead(own, request.tenant)
            if request.deadline is not None:
                ahead = min(ahead, self._nearer(own, request.tenant, request.deadline))
        return pace * ahead / self.width, pace * own

    def _nearer(self, own: float, tenant: str, deadline: float) -> float:
        """Cost units that are done before work of `own` units with a deadline: its tenant's of nearer deadlines, and of
        the others as much as of it."""
        return sum(
            (each.left if each.deadline <= deadline else 0.0) if each.tenant == tenant else min(each.left, own)
            for each in self._tickets
        )

    def _ahead(self, own: float, tenant: str) -> float:
        """Cost units of others that are done before work of `own` units is: while there is a place to run, each
        other request gets at most as much of the time as this one; beyond that, tenants take turns."""
        if len(self._tickets) < self.width * self._together:
            return sum(min(ticket.left, own) for ticket in self._tickets)
        mine = self._shares.get(tenant, Share()).left
        return sum(
            share.left if name == tenant else min(share.left, mine + own) for name, share in self._shares.items()
        )

    def _next_room(self) -> float:
        """Seconds until the next request ends, as far as one can know."""
        pace = self._speed.seconds_per_cost
        if pace is None or not self._tickets:
            return FIRST_RETRY
        return _retry(pace * self._left() / len(self._tickets) / self.width)


def _retry(seconds: float) -> float:
    return min(LONGEST_RETRY, max(SHORTEST_RETRY, seconds))
