"""What a forward costs by how much is in it, measured while running, and whether sharing one pays.

On a machine whose products already run at its rate with one row, requests that share forwards all finish late and
nothing is gained; elsewhere a row costs next to nothing beside another. `Forwards` reports what forwards took, the
engine asks before it lets a state join others in a tick. Numbers only; no tensors, no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

KEPT = 7  # measurements of a kind; their median is what counts, so that neither a first run nor a hiccup does
ENOUGH = 3  # measurements of a kind, alone before company is tried, and in company before it is given up
GAIN = 0.1  # of the time apart that sharing must save
STALE = 500  # forwards of a network after which a kind is measured anew

Kind = tuple[str, int]
"""A network, and the binary logarithm of row tokens: sizes within a factor of about 1.4 of one another are alike."""


@dataclass
class Measured:
    """The latest measurements of one kind, and how many forwards of its network came since."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    since: int = 0

    def add(self, value: float) -> None:
        """One more; the oldest goes, and all do that are stale."""
        if self.since > STALE:
            self.values.clear()
        self.values.append(value)
        self.since = 0


class Pace:
    """The pace of every network; the rows of all branches of one state count as one."""

    def __init__(self) -> None:
        self._alone: dict[Kind, Measured] = {}
        self._together: dict[Kind, Measured] = {}

    def record(self, network: str, tokens: Sequence[int], seconds: float) -> None:
        """A forward of states with so many row tokens each took `seconds`."""
        for kinds in (self._alone, self._together):
            for (of, _), measured in kinds.items():
                measured.since += of == network
        if len(tokens) == 1:
            self._alone.setdefault(kind(network, tokens), Measured()).add(seconds)
            return
        apart = [self.alone(network, each) for each in tokens]
        known = [each for each in apart if each is not None]
        if len(known) == len(apart):
            self._together.setdefault(kind(network, tokens), Measured()).add(seconds / sum(known))

    def alone(self, network: str, tokens: int) -> float | None:
        """The seconds of a forward for one state of about so many row tokens; None until it was measured enough."""
        found = self._alone.get(kind(network, [tokens]))
        return None if found is None or len(found.values) < ENOUGH else median(found.values)

    def pays(self, network: str, tokens: Sequence[int]) -> bool:
        """Whether states with so many row tokens each should share a forward of `network`.

        What is not known, or was measured long ago, is measured: each size alone, then in company. A first forward in
        company is often slow, as a first one alone is: it decides nothing.
        """
        for each in tokens:
            if self.alone(network, each) is None or self._alone[kind(network, [each])].since > STALE:
                return False
        found = self._together.get(kind(network, tokens))
        if found is None or found.since > STALE or len(found.values) < ENOUGH:
            return True
        return median(found.values) < 1 - GAIN

    def table(self) -> list[tuple[str, int, float]]:
        """(network, row tokens, time together over time apart) for every kind of company that was measured."""
        return [(network, 2**size, median(each.values)) for (network, size), each in sorted(self._together.items())]


def kind(network: str, tokens: Sequence[int]) -> Kind:
    """The kind of a forward of states with so many tokens each: their mean decides."""
    return network, round(math.log2(max(1.0, sum(tokens) / len(tokens))))
