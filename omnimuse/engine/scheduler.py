"""Who runs next: fair between tenants, then by lateness, priority and shortness; bounded, within a budget per tick.

Pure bookkeeping of names and numbers, driven by the engine under its lock, which tells the time. No torch, no events;
the log has who waits for what others wear.

Between tenants: each is charged for the work done for it, and who has been served least comes first. Whoever was away
starts level with the least served one present; what a tenant took beyond that is remembered. No tenant holds more than
its share of the places, also where nobody else wants them.
Within a tenant: higher priority first, then the nearer deadline, then the least work left, so that short requests do
not wait for long ones. But requests that came long ago are late, and half of a tenant's work goes to them, the oldest
first, so that nobody waits for ever. A deadline that will not be kept, by the speed of the ticks so far, is none: its
request comes after those that will be in time, and nobody joins a tick at the price of somebody's deadline.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import reduce

from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import CapacityError
from omnimuse.core.request import Request
from omnimuse.engine.needs import NONE, NOTHING, Kept, Need
from omnimuse.engine.places import FOREVER, Amount, Entry, Room, States
from omnimuse.engine.targets import Targets
from omnimuse.worker.pace import Offer, Party, Price

log = logging.getLogger(__name__)

Company = Callable[[Party, Offer], bool]
"""(states that advance, one more) -> whether it should advance with them, and not in a tick of its own."""

Cost = Callable[[str], Price | None]
"""(state id) -> the work of that state's next step; None if it is not known yet."""

Waits = Callable[[str], bool]
"""(state id) -> whether it has nothing to do until something comes from another pool."""


@dataclass
class Tenant:
    """What has been done for one tenant, in tokens: in all, and of that for late requests and for others."""

    served: float = 0.0
    late: float = 0.0
    timely: float = 0.0


@dataclass(frozen=True)
class Pick:
    """One tick's choice: requests to start, parked ones to wake, active ones to park, and the states that advance."""

    admit: tuple[Request, ...]
    wake: tuple[str, ...]
    park: tuple[str, ...]
    run: tuple[str, ...]


class Scheduler:
    """Bounded queue and choice of the next tick. `now` is seconds on one clock throughout. All together wear no more
    than `wearable` bytes.
    """

    def __init__(self, config: ScheduleConfig, wearable: float = FOREVER) -> None:
        self.config = config
        self._wearable = wearable
        self.entries: dict[str, Entry] = {}
        self.tenants: dict[str, Tenant] = {}
        self._arrivals = 0
        self._last = 0.0
        self._targets = Targets()
        self._hopeless: set[int] = set()
        self._advanced: list[Entry] = []
        self._room = FOREVER
        self._learnt: Hashable = None
        self._told: set[str] = set()  # who waits for what others wear, and the log says so
        self._states: States = lambda request_id: 0

    @property
    def waiting(self) -> int:
        """Requests that have not started."""
        return sum(not entry.begun for entry in self.entries.values())

    @property
    def busy(self) -> bool:
        """Whether a tick would do something: a request runs or could, or one that is held must be parked."""
        return any(entry.active or not entry.held for entry in self.entries.values())

    def add(self, request: Request, tokens: int, now: float, bytes: int = 0, need: Need = NOTHING) -> None:
        """Queue a request whose outputs cost `tokens` a step each, may come to remember so many `bytes`, and are
        foretold to take what they `need`.

        CapacityError when the queue is full.
        """
        if self.waiting >= self.config.max_queue:
            raise CapacityError(
                f"the queue is full ({self.config.max_queue} requests are waiting); try again later", 1.0
            )
        self._enter(request.tenant)
        live = [f"{request.id}/{output}" for output in range(request.outputs)]
        due, left = now + self.config.patience, tokens * request.evaluations * len(live)
        self.entries[request.id] = Entry(request, tokens, self._arrivals, due, left, live, bytes=bytes, need=need)
        self._arrivals += 1

    def alone(self, request: Request, tokens: int) -> float | None:
        """The seconds that `request` takes if it has the engine to itself; None before anything was measured."""
        pace = self._targets.pace
        return None if pace is None else pace * tokens * request.evaluations * request.outputs

    def hold(self, request_id: str, held: bool) -> bool:
        """Pause a request, or let it go on; False for one that is not known."""
        entry = self.entries.get(request_id)
        if entry is not None:
            if entry.held and not (held or entry.active):
                self._enter(entry.request.tenant)
            entry.held = held
        return entry is not None

    def remove(self, request_id: str) -> None:
        """Forget a request: it finished, failed, was cancelled or expired."""
        self.entries.pop(request_id, None)
        self._told.discard(request_id)
        if not self.entries:
            self._targets.rest()

    def finished(self, state_id: str, kept: int = 0) -> None:
        """One output is finished; it no longer counts as running. So many bytes are kept of it, and of those before."""
        entry = self.entries.get(state_id.split("/")[0])
        if entry and state_id in entry.live:
            entry.live.remove(state_id)
            entry.kept = entry.kept._replace(finished=kept)

    def expired(self, now: float) -> list[str]:
        """Requests whose deadline has passed."""
        return [id_ for id_, entry in self.entries.items() if entry.deadline <= now]

    def overrun(self, now: float) -> list[str]:
        """Requests that have been in progress for longer than one may be."""
        if not (limit := self.config.max_run):
            return []
        self._pass_time(now)
        return [id_ for id_, entry in self.entries.items() if entry.ran > limit]

    def next_deadline(self) -> float | None:
        """The nearest deadline there is."""
        return min((entry.deadline for entry in self.entries.values() if entry.deadline < FOREVER), default=None)

    def pick(
        self,
        now: float,
        cost: Cost,
        company: Company = lambda party, offer: True,
        waits: Waits = lambda state_id: False,
        room: float = FOREVER,
        states: States = lambda request_id: 0,
    ) -> Pick:
        """What happens in the next tick, if all that have begun have so many bytes of `room`."""
        self._room, self._states = room, states
        self._pass_time(now)
        wanted = [entry for entry in self.entries.values() if entry.deadline < FOREVER and not entry.held]
        self._hopeless = self._targets.hopeless(wanted, now)
        parked = self._parked([entry for entry in self._active() if entry.held])
        parked += self._parked(self._preempted(now))
        fitting = self._admissible(now)
        woken, admitted = [e for e in fitting if e.begun], [e for e in fitting if not e.begun]
        for entry in fitting:
            entry.active, entry.begun, entry.placed = True, True, now
            entry.kept = entry.kept._replace(states=0)
        self._advanced = []
        return Pick(
            admit=tuple(entry.request for entry in admitted),
            wake=tuple(entry.request.id for entry in woken),
            park=tuple(entry.request.id for entry in parked),
            run=tuple(self._advancing(now, cost, company, waits)),
        )

    def taken(self, guess: Callable[[Request], Need]) -> int:
        """The bytes that all take who have a place, by what is foretold of them, or where nobody knows by a `guess`,
        and those that are kept.
        """
        active = self._active()
        needs = [entry.needs(guess).times(len(entry.live)) for entry in active]
        remembered = sum(entry.bytes * len(entry.live) for entry in active)
        return max(reduce(Need.and_of, needs, self.resting).most, remembered) + self.kept.all

    def reckon(self, learnt: Hashable, need: Callable[[Request], Need]) -> bool:
        """Everybody needs what is foretold now, if another state of what was `learnt` is new. Whether it is."""
        if learnt == self._learnt:
            return False
        self._learnt = learnt
        for entry in self.entries.values():
            entry.need = need(entry.request)
        return True

    def postpone(self, request_ids: Iterable[str], now: float) -> None:
        """These, which were to begin in this tick, wait on, and have done nothing in it."""
        waiting = [self.entries[id_] for id_ in request_ids]
        for entry in waiting:
            entry.active = entry.begun = False
        for entry in self._advanced:
            if entry in waiting:
                self._charge(entry, -entry.tokens, now, -1)
        self._advanced = [entry for entry in self._advanced if entry not in waiting]
        self._targets.rest()

    def repeated(self, times: int, now: float) -> None:
        """The states of the last tick have written so many tokens more in it."""
        for entry in self._advanced:
            self._charge(entry, times, now, times)
        self._targets.more(times * sum(entry.tokens for entry in self._advanced))

    # -- places ----------------------------------------------------------------------------------------------------

    def _admissible(self, now: float) -> list[Entry]:
        """Waiting requests that fit beside those in progress, in order; a request that fits nowhere runs alone.

        A tenant who has its share waits, and does not keep others waiting.
        """
        waiting, fitting, content = self._waiting(), list[Entry](), set[str]()
        if not waiting:
            return fitting
        room = self._place(self._active())
        for entry in self._ordered(waiting, now):
            if not room.shared(entry):
                content.add(entry.request.tenant)
            if entry.request.tenant in content:
                continue
            if not room.fits(entry):
                self._tell(entry, room)
                break
            room.take(entry)
            fitting.append(entry)
        return fitting

    def _tell(self, entry: Entry, room: Room) -> None:
        """Say once why `entry` waits, if it waits for what others wear."""
        id_, wears = entry.request.id, sum(entry.need.worn.values())
        if not room.wearable(entry) and id_ not in self._told:
            self._told.add(id_)
            worn, most = told_bytes(room.worn), told_bytes(int(self._wearable))
            log.info(
                "request %s wears %s, and waits for others, which wear %s of %s", id_, told_bytes(wears), worn, most
            )

    def _preempted(self, now: float) -> list[Entry]:
        """Active requests that give up their place to the first of those that wait, whose turn it is more than theirs.

        A place is kept for a slice of time at least, and given up at a step's boundary. The first is of a tenant whose
        share has room for it, or is made to have by the tenant's own requests. Nobody gives up a place where that makes
        no room, as what it keeps stays there.
        """
        if not (waiting := self._waiting()):
            return []
        staying = self._active()
        firsts: dict[str, Entry] = {}
        for entry in self._ordered(waiting, now):
            firsts.setdefault(entry.request.tenant, entry)
        for tenant, first in firsts.items():
            room = self._place(staying)
            order = self._ordered([*staying, first], now)
            behind = reversed(order[order.index(first) + 1 :])
            ripe = [entry for entry in behind if now - entry.placed >= self.config.slice]
            own = [entry for entry in ripe if entry.request.tenant == tenant]
            parked = room.clear(room.shared, first, own, self._states)
            if room.shared(first):
                others = [entry for entry in ripe if entry not in parked]
                parked += room.clear(room.fits, first, others, self._states)
                return parked if room.fits(first) else []
        return []

    def _place(self, entries: Iterable[Entry]) -> Room:
        """What there is beside these."""
        most = Amount(
            self.config.max_running,
            self.config.running_tokens or FOREVER,
            self.config.running_bytes or FOREVER,
            self._room,
            wearable=self._wearable,
        )
        return Room(most, self.config.tenant_share, entries, self.kept, self.resting)

    def _parked(self, entries: list[Entry]) -> list[Entry]:
        """These, from now on."""
        for entry in entries:
            entry.active = False
            entry.kept = entry.kept._replace(states=self._states(entry.request.id))
        return entries

    @property
    def kept(self) -> Kept:
        """What all of them keep."""
        return reduce(Kept.and_of, (entry.kept for entry in self.entries.values()), NONE)

    @property
    def resting(self) -> Need:
        """What those who have begun and have no place need beside what they keep: what they wear."""
        resting = (entry.need.worn for entry in self.entries.values() if entry.begun and not entry.active)
        return NOTHING.wearing({name: size for worn in resting for name, size in worn.items()})

    def _active(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.active]

    def _waiting(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if not entry.active and not entry.held]

    def _pass_time(self, now: float) -> None:
        for entry in self._active():
            entry.ran += now - max(self._last, entry.placed)
        self._last = now

    # -- order -----------------------------------------------------------------------------------------------------

    def _advancing(self, now: float, cost: Cost, company: Company, waits: Waits) -> list[str]:
        """States for one tick: the first in order, then those in whose company it gains, while the budget lasts.

        All of them are charged.
        """
        queues: dict[str, deque[tuple[Entry, str]]] = {}
        for entry in self._ordered(self._active(), now):
            able = [(entry, state_id) for state_id in entry.live if not waits(state_id)]
            if able:
                queues.setdefault(entry.request.tenant, deque()).extend(able)
        chosen = Party()
        hopeful: list[Entry] = []
        budget, reckoned, needed, room = self.config.tick_tokens, 0, self.resting, self._room - self.kept.all
        while queues:
            name = next(iter(queues)) if len(queues) == 1 else min(queues, key=lambda name: self.tenants[name].served)
            entry, state_id = queues[name].popleft()
            price, network = cost(state_id) or (entry.tokens, None)
            if not queues[name]:
                del queues[name]
            together = needed.and_of(entry.need)
            if chosen.offers and (price > budget or together.most > room):
                break
            welcome = not hopeful or self._targets.allow(hopeful, (reckoned, entry.tokens), now)
            offer = Offer(state_id, price, entry.steps, network)
            if chosen.offers and not (welcome and company(chosen, offer)):
                continue
            chosen.add(offer)
            if entry.deadline < FOREVER and id(entry) not in self._hopeless:
                hopeful.append(entry)
            budget, reckoned, needed = budget - price, reckoned + entry.tokens, together
            self._charge(entry, price, now)
            self._advanced.append(entry)
        self._targets.begin(now, reckoned)
        return [offer.state for offer in chosen.offers]

    def _charge(self, entry: Entry, price: int, now: float, steps: int = 1) -> None:
        tenant = self.tenants[entry.request.tenant]
        tenant.served += price
        entry.left = max(0, entry.left - entry.tokens * steps)  # as it was reckoned, for what has not begun is, too
        if entry.due <= now:
            tenant.late += price
        else:
            tenant.timely += price

    def _ordered(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        def rank(entry: Entry) -> tuple[float, ...]:
            tenant, late = self.tenants[entry.request.tenant], entry.due <= now
            turn = late == (tenant.late <= tenant.timely)  # is it now the turn of late requests, or of the others?
            deadline = FOREVER if id(entry) in self._hopeless else entry.deadline
            own = (entry.due, 0, 0) if late else (-entry.request.priority, deadline, entry.left)
            return (tenant.served, not turn, not late, *own, entry.arrival)

        return sorted(entries, key=rank)

    def _enter(self, name: str) -> None:
        """A tenant that was away starts level with the least served one present: absence earns no credit. Away
        is, too, who has paused all of its requests.
        """
        known = {entry.request.tenant for entry in self.entries.values()}
        present = {entry.request.tenant for entry in self.entries.values() if entry.active or not entry.held}
        if name in present:
            return
        if present:
            floor = min(self.tenants[other].served for other in present)
        else:  # nobody was kept waiting, so nobody owes anything
            floor = max((tenant.served for tenant in self.tenants.values()), default=0.0)
        owing = {other: tenant for other, tenant in self.tenants.items() if other in known or tenant.served > floor}
        before = owing.get(name, Tenant())
        self.tenants = {**owing, name: Tenant(max(before.served, floor))}
