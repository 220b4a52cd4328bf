"""What a forward costs by how much is in it, measured while running, and whether sharing one pays.

On a machine whose products already run at its rate with one row, requests that share forwards all finish late and
nothing is gained; elsewhere a row costs next to nothing beside another. In between, company saves work but delays those
who have little left, which people feel as the average. `Forwards` reports what forwards took, the engine asks before it
lets a state join others in a tick. Numbers only; no tensors, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

KEPT = 7  # measurements of a kind; their median is what counts, so that neither a first run nor a hiccup does
ENOUGH = 3  # measurements of a kind, alone before company is tried, and in company before it is given up
GAIN = 0.05  # of the time apart that sharing must save
CHEAP = 0.5  # of its time alone that whoever joins may cost, however little those before it have left
STALE = 500  # forwards of a network after which a kind is measured anew

Kind = tuple[str, int, int]
"""A network, and the binary logarithms of row tokens and of the states: what is within a factor of 1.4 is alike."""


class Offer(NamedTuple):
    """A state that could advance in a tick, the row tokens of its step, how many steps it has left, and the network
    that its step asks, where that is known.
    """

    state: str
    tokens: int
    steps: float
    network: str | None = None


class Shared(NamedTuple):
    """What forwards of `network` for so many `states` of about so many row `tokens` each took: the `share` of the time
    of as many apart.
    """

    network: str
    tokens: int
    states: int
    share: float


class Price(NamedTuple):
    """What a state's next step costs, in row tokens, and the network that it asks, where there is one."""

    tokens: int
    network: str | None


@dataclass
class Measured:
    """The latest measurements of one kind, and how many forwards of its network came since."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    since: int = 0
    middle: float = 0.0
    """Their median, which is asked for more often than it changes."""

    def add(self, value: float) -> None:
        """One more; the oldest goes, and all do that are stale."""
        if self.since > STALE:
            self.values.clear()
        self.values.append(value)
        self.since, self.middle = 0, median(self.values)


class Pace:
    """The pace of every network; the rows of all branches of one state count as one."""

    def __init__(self) -> None:
        self._alone: dict[Kind, Measured] = {}
        self._together: dict[Kind, Measured] = {}

    def record(self, network: str, tokens: Sequence[int], seconds: float) -> None:
        """A forward of states with so many row tokens each took `seconds`."""
        for kinds in (self._alone, self._together):
            for (of, _, _), measured in kinds.items():
                measured.since += of == network
        if len(tokens) == 1:
            self._alone.setdefault(kind(network, tokens), Measured()).add(seconds / max(1, *tokens))
            return
        if (apart := self._apart(network, tokens)) is not None:
            self._together.setdefault(kind(network, tokens), Measured()).add(seconds / sum(apart))

    def alone(self, network: str, tokens: int) -> float | None:
        """The seconds of a forward for one state of so many row tokens; None until its like was measured enough."""
        found = self._alone.get(kind(network, [tokens]))
        return None if found is None or len(found.values) < ENOUGH else found.middle * max(1, tokens)

    def pays(self, network: str, offers: Sequence[Offer]) -> bool:
        """Whether the last of `offers` should share a forward of `network` with the others, who are there already.

        What is not known, or was measured long ago, is measured: each size alone, then in company. A first forward in
        company is often slow, as a first one alone is: it decides nothing. Then it must be `worth` it.
        """
        tokens = [each.tokens for each in offers]
        apart = self._apart(network, tokens)
        if apart is None or any(self._alone[kind(network, [each])].since > STALE for each in set(tokens)):
            return False
        together = self._shared(network, tokens)
        if together is None:
            return True
        before = sum(apart[:-1]) * (self._shared(network, tokens[:-1]) or 1.0)
        return worth(offers, apart, before, together * sum(apart))

    def table(self) -> list[Shared]:
        """Every kind of company that was measured. May be asked for by another thread than the one that measures."""
        return [
            Shared(network, 2**size, 2**count, each.middle)
            for (network, size, count), each in sorted(self._together.items())
        ]

    def _apart(self, network: str, tokens: Sequence[int]) -> list[float] | None:
        """The seconds of each state in a forward of its own; None where one is not known."""
        alike = {each: self.alone(network, each) for each in set(tokens)}  # many that write are of one size
        known = [seconds for each in tokens if (seconds := alike[each]) is not None]
        return known if len(known) == len(tokens) else None

    def _shared(self, network: str, tokens: Sequence[int]) -> float | None:
        """What a forward of all takes of the time apart; None where it is not known, or not any more."""
        found = self._together.get(kind(network, tokens))
        if found is None or found.since > STALE or len(found.values) < ENOUGH:
            return None
        return found.middle


def worth(offers: Sequence[Offer], apart: Sequence[float], before: float, together: float) -> bool:
    """Whether the last of `offers`, whose steps take so many seconds `apart`, should step with the others, which take
    `before` without it and `together` with it.

    Company must save time, and whoever joins must cost little beside what it would alone, or bring its own end nearer
    by more than it delays theirs (Smith's rule: work first that has most ends for its time).
    """
    if together >= (1 - GAIN) * sum(apart):
        return False
    extra = together - before
    if extra <= CHEAP * apart[-1]:
        return True
    *ends, own = (1 / (max(1.0, offer.steps) * seconds) for offer, seconds in zip(offers, apart, strict=True))
    return extra * sum(ends) < before * own


def kind(network: str, tokens: Sequence[int]) -> Kind:
    """The kind of a forward of states with so many tokens each: their mean and their number decide."""
    count = len(tokens)
    return network, round(math.log2(max(1.0, sum(tokens) / count))), round(math.log2(count))
