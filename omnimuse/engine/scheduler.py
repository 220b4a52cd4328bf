"""Who runs next: priority, fairness between tenants, deadline, arrival; bounded, with a token budget per tick.

Pure bookkeeping of names and numbers, driven by the engine under its lock. No torch, no clock, no events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import CapacityError
from omnimuse.core.request import Request

FOREVER = float("inf")


@dataclass
class Entry:
    """A request the scheduler knows: its cost per output and step, and the outputs still in the making."""

    request: Request
    tokens: int
    arrival: int
    live: list[str] = field(default_factory=list)
    running: bool = False
    paused: bool = False


class Scheduler:
    """Bounded queue and choice of the next tick.

    Order: higher priority first, then the tenant that has been served least, then the nearer deadline, then the
    earlier arrival.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.entries: dict[str, Entry] = {}
        self.served: dict[str, float] = {}
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """Requests that have not started."""
        return sum(not entry.running for entry in self.entries.values())

    def add(self, request: Request, tokens: int) -> None:
        """Queue a request whose outputs cost `tokens` a step; CapacityError when the queue is full."""
        if self.waiting >= self.config.max_queue:
            raise CapacityError(
                f"the queue is full ({self.config.max_queue} requests are waiting); try again later", 1.0
            )
        live = [f"{request.id}/{output}" for output in range(request.outputs)]
        self._enter(request.tenant)
        self.entries[request.id] = Entry(request, tokens, self._arrivals, live)
        self._arrivals += 1

    def remove(self, request_id: str) -> None:
        """Forget a request: it finished, failed, was cancelled or expired."""
        self.entries.pop(request_id, None)

    def finished(self, state_id: str) -> None:
        """One output is finished; it no longer counts as running."""
        entry = self.entries.get(state_id.split("/")[0])
        if entry and state_id in entry.live:
            entry.live.remove(state_id)

    def expired(self, now: float) -> list[str]:
        """Requests whose deadline has passed."""
        return [id_ for id_, e in self.entries.items() if e.request.deadline is not None and e.request.deadline <= now]

    def pick(self) -> tuple[list[Request], list[str]]:
        """The requests to admit now, and the states that advance in this tick."""
        admitted = [self._start(entry) for entry in self._admissible()]
        chosen: list[str] = []
        budget = self.config.tick_tokens
        for entry in self._ordered(e for e in self.entries.values() if e.running and not e.paused):
            for state_id in entry.live:
                if chosen and entry.tokens > budget:
                    return admitted, chosen
                chosen.append(state_id)
                budget -= entry.tokens
                self.served[entry.request.tenant] += entry.tokens
        return admitted, chosen

    def _admissible(self) -> list[Entry]:
        """Waiting requests that fit beside those in progress, in order; a request that fits nowhere runs alone."""
        outputs, tokens = self._in_progress()
        limit = self.config.running_tokens or FOREVER
        fitting: list[Entry] = []
        for entry in self._ordered(e for e in self.entries.values() if not e.running and not e.paused):
            size = len(entry.live)
            fits = outputs + size <= self.config.max_running and tokens + size * entry.tokens <= limit
            if outputs and not fits:
                break
            fitting.append(entry)
            outputs, tokens = outputs + size, tokens + size * entry.tokens
        return fitting

    def _in_progress(self) -> tuple[int, float]:
        running = [entry for entry in self.entries.values() if entry.running]
        return sum(len(e.live) for e in running), sum(len(e.live) * e.tokens for e in running)

    def _start(self, entry: Entry) -> Request:
        entry.running = True
        return entry.request

    def _ordered(self, entries: Iterable[Entry]) -> list[Entry]:
        def rank(entry: Entry) -> tuple[float, float, float, int]:
            request = entry.request
            deadline = FOREVER if request.deadline is None else request.deadline
            return (-request.priority, self.served[request.tenant], deadline, entry.arrival)

        return sorted(entries, key=rank)

    def _enter(self, tenant: str) -> None:
        """A tenant that was away starts level with the least served one present: absence earns no credit."""
        present = {entry.request.tenant for entry in self.entries.values()}
        if tenant not in present:
            floor = min((self.served[other] for other in present), default=0.0)
            self.served[tenant] = max(self.served.get(tenant, 0.0), floor)
            self.served = {name: used for name, used in self.served.items() if name in present or name == tenant}
