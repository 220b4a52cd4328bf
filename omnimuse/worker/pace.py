"""What a forward costs by how much is in it, measured while running, and whether sharing one pays.

On a machine whose products already run at its rate with one row, requests that share forwards all finish late and
nothing is gained; elsewhere a row costs next to nothing beside another. In between, company saves work but delays those
who have little left, which people feel as the average. `Forwards` reports what forwards took, the engine asks before it
lets a state join others in a tick. Numbers only; no tensors, no clock.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import NamedTuple

KEPT = 7  # measurements of a kind; their median is what counts, so that neither a first run nor a hiccup does
ENOUGH = 3  # measurements of a kind, alone before company is tried, and in company before it is given up
GAIN = 0.05  # of the time apart that sharing must save
CHEAP = 0.5  # of its time alone that whoever joins may cost, however little those before it have left
STALE = 500  # forwards of a network after which a kind is measured anew
FRESH = 16  # forwards for which what was reckoned of company stands

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

    @property
    def ends(self) -> float:
        """How often it ends with a step, on average."""
        return 1 / max(1.0, self.steps)


class Party:
    """States that step in one tick, `offers`, and of them in sums what decides whether one more should join."""

    def __init__(self, offers: Iterable[Offer] = ()) -> None:
        self.offers: list[Offer] = []
        self.networks: set[str | None] = set()
        self.tokens = 0
        self.counts: dict[int, int] = {}
        """By row tokens: how many have so many."""
        for offer in offers:
            self.add(offer)

    def add(self, offer: Offer) -> None:
        """One more steps with them."""
        self.offers.append(offer)
        self.networks.add(offer.network)
        self.tokens += offer.tokens
        self.counts[offer.tokens] = self.counts.get(offer.tokens, 0) + 1

    def alike(self, network: str, tokens: int) -> Party:
        """Those that ask that network, or none yet, and for one token where `tokens` are one, else for more; itself,
        where these are all.
        """
        if self.networks <= {network, None} and self.counts.get(1, 0) == (len(self.offers) if tokens == 1 else 0):
            return self
        there = (each for each in self.offers if each.network in (network, None))
        return Party(each for each in there if (each.tokens == 1) == (tokens == 1))


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


class Apart(NamedTuple):
    """What steps take by themselves, in seconds: those of the `others`, and the `own` of who may join them; and how
    many of them, and of its own, end in a second then.
    """

    others: float
    own: float
    ends: float
    end: float


class Reckoned(NamedTuple):
    """What company with one more takes, in seconds: states by size in forwards of their own, all those that are there
    apart and in one forward, and that with one more.
    """

    alone: dict[int, float]
    others: float
    before: float
    together: float


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
        self._reckoned: dict[Hashable, Reckoned | bool] = {}
        self._records = 0

    def record(self, network: str, tokens: Sequence[int], seconds: float) -> None:
        """A forward of states with so many row tokens each took `seconds`."""
        for kinds in (self._alone, self._together):
            for (of, _, _), measured in kinds.items():
                measured.since += of == network
        if len(tokens) == 1:
            measured = self._alone.setdefault(kind(network, *tokens), Measured())
            measured.add(seconds / max(1, *tokens))
        else:
            sizes = Counter(tokens)  # many that write are of one size
            if (alone := self._each_alone(network, sizes)) is None:
                return
            apart = sum(count * alone[size] for size, count in sizes.items())
            measured = self._together.setdefault(kind(network, sum(tokens), len(tokens)), Measured())
            measured.add(seconds / apart)
        self._records += 1
        if self._records % FRESH == 0 or len(measured.values) <= ENOUGH:
            self._reckoned.clear()

    def alone(self, network: str, tokens: int) -> float | None:
        """The seconds of a forward for one state of so many row tokens; None until its like was measured enough."""
        found = self._alone.get(kind(network, tokens))
        return None if found is None or len(found.values) < ENOUGH else found.middle * max(1, tokens)

    def pays(self, network: str, party: Party, offer: Offer) -> bool:
        """Whether `offer` should share a forward of `network` with the `party` that is there already.

        What is not known, or was measured long ago, is measured: each size alone, then in company. A first forward in
        company is often slow, as a first one alone is: it decides nothing. Then it must be `worth` it.
        """
        key = network, offer.tokens, *party.counts.items()
        if (reckoned := self._reckoned.get(key)) is None:
            reckoned = self._reckoned[key] = self._reckon(network, party, offer.tokens)
        if isinstance(reckoned, bool):
            return reckoned
        alone, others, before, together = reckoned
        ends = sum(each.ends / alone[each.tokens] for each in party.offers)
        own = alone[offer.tokens]
        return worth(Apart(others, own, ends, offer.ends / own), before, together)

    def _reckon(self, network: str, party: Party, tokens: int) -> Reckoned | bool:
        """What a state of so many row tokens costs with the `party`; whether it pays, where that does not depend on
        what is left of them, and before it is known, whether to try it.
        """
        sizes, count = {*party.counts, tokens}, len(party.offers)
        alone = self._each_alone(network, sizes)
        if alone is None or any(self._alone[kind(network, size)].since > STALE for size in sizes):
            return False
        together = self._shared(network, party.tokens + tokens, count + 1)
        if together is None:
            return True
        others = sum(many * alone[size] for size, many in party.counts.items())
        before = others * (self._shared(network, party.tokens, count) or 1.0)
        found = Reckoned(alone, others, before, together * (others + alone[tokens]))
        bounds = (Apart(others, alone[tokens], ends, end) for ends, end in ((1, 0), (0, 1)))
        worst, best = (worth(apart, before, found.together) for apart in bounds)
        return worst if worst == best else found

    def table(self) -> list[Shared]:
        """Every kind of company that was measured. May be asked for by another thread than the one that measures."""
        return [
            Shared(network, 2**size, 2**count, each.middle)
            for (network, size, count), each in sorted(self._together.items())
        ]

    def _each_alone(self, network: str, sizes: Collection[int]) -> dict[int, float] | None:
        """The seconds of a state of each of these sizes in a forward of its own; None where one is not known."""
        known = {size: seconds for size in sizes if (seconds := self.alone(network, size)) is not None}
        return known if len(known) == len(sizes) else None

    def _shared(self, network: str, tokens: int, count: int) -> float | None:
        """What a forward of all takes of the time apart; None where it is not known, or not any more."""
        found = self._together.get(kind(network, tokens, count))
        if found is None or found.since > STALE or len(found.values) < ENOUGH:
            return None
        return found.middle


def worth(apart: Apart, before: float, together: float) -> bool:
    """Whether one more should step with others, which take `before` seconds without it and `together` with it.

    Company must save time, and whoever joins must cost little beside what it would alone, or bring its own end nearer
    by more than it delays theirs (Smith's rule: work first that has most ends for its time).
    """
    if together >= (1 - GAIN) * (apart.others + apart.own):
        return False
    extra = together - before
    return extra <= CHEAP * apart.own or extra * apart.ends < before * apart.end


@lru_cache(maxsize=4096)
def kind(network: str, tokens: int, count: int = 1) -> Kind:
    """The kind of a forward of so many states with so many tokens in all: their mean and their number decide."""
    return network, round(math.log2(max(1.0, tokens / count))), round(math.log2(count))
