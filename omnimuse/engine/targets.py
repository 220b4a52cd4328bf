"""Which requests can still be answered by their deadlines, judged by the speed of the ticks so far.

The scheduler asks before it orders them: work on what will be late anyway is taken from what need not be. Numbers
only; nothing is known before a tick has been timed, and then everything is taken to be possible.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Protocol

MARGIN = 1.5
"""How many times its work left a request must have time for before it shares ticks: what comes later has its own."""
KEEP = 0.95
"""What is left of older ticks after each: half after fourteen."""
STALL = 8.0
"""How many times longer than expected a tick may take and still count in full."""


class Wanted(Protocol):
    """A request with a deadline (seconds on the engine's clock), and its work left, in tokens."""

    @property
    def deadline(self) -> float:
        """When its answer is wanted."""
        ...

    @property
    def left(self) -> int:
        """Row tokens of all its steps to come, as they were reckoned before the first."""
        ...

    @property
    def steps(self) -> float:
        """How many steps are to come."""
        ...


class Targets:
    """Seconds per token, learnt from tick to tick with all that stands between two; and what follows from it."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0
        self._began: tuple[float, int] | None = None

    @property
    def pace(self) -> float | None:
        """Seconds per token; None before anything was measured."""
        return self._seconds / self._tokens if self._tokens else None

    def begin(self, now: float, tokens: int) -> None:
        """A tick of so many tokens begins, and so the one before it has ended."""
        if self._began is not None:
            began, done = self._began
            spent = now - began
            if (pace := self.pace) is not None:
                spent = min(spent, STALL * pace * done)
            self._seconds, self._tokens = KEEP * self._seconds + spent, KEEP * self._tokens + done
        self._began = (now, tokens) if tokens else None

    def more(self, tokens: int) -> None:
        """The tick that has begun turned out to have so many tokens more."""
        if self._began is not None:
            began, done = self._began
            self._began = (began, done + tokens)

    def rest(self) -> None:
        """There is nothing to do: what follows is no measure."""
        self._began = None

    def hopeless(self, wanted: Iterable[Wanted], now: float) -> set[int]:
        """The `id`s of those to give up so that the fewest are late, done one after the other (Moore, 1968).

        In the order of deadlines, wherever one would be late, the longest so far is given up.
        """
        pace, given_up = self.pace, set[int]()
        if pace is None:
            return given_up
        ends, kept = now, list[tuple[int, int]]()
        for each in sorted(wanted, key=lambda each: each.deadline):
            ends += pace * each.left
            heapq.heappush(kept, (-each.left, id(each)))
            if ends > each.deadline:
                longest, name = heapq.heappop(kept)
                ends += pace * longest
                given_up.add(name)
        return given_up

    def allow(self, others: Iterable[Wanted], tokens: tuple[int, int], now: float) -> bool:
        """Whether each of `others`, who step in a tick of so many tokens, would be in time if every step to come took
        as long as one of as many and those of somebody else. Who would be late without them, too, is not asked.
        """
        pace, (alone, besides) = self.pace, tokens
        if pace is None:
            return True
        for wanted in others:
            left = MARGIN * pace * wanted.steps
            if now + left * alone <= wanted.deadline < now + left * (alone + besides):
                return False
        return True
