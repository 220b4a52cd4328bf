"""What memory requests need beside each other: what all of them hold and compute at once, what only one does, and what
they keep while nothing is computed for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Need(NamedTuple):
    """The bytes that an output, or several together, have at most `beside` others: in steps that are shared, and in
    between; and how many `beyond` these while one computes for itself, as texts are read and outputs are decoded one at
    a time. What is `worn`, by its name, takes as much however many wear it; of what compiled layers have `joined` for
    one of several, they have one at a time.
    """

    beside: int = 0
    beyond: int = 0
    worn: Mapping[str, int] = MappingProxyType({})
    joined: int = 0

    @property
    def foretold(self) -> int:
        """Those that it has at once at most beside what is worn; 0 where nobody knows."""
        return self.beside + self.beyond

    @property
    def most(self) -> int:
        """Those that it has at once at most."""
        return self.foretold + sum(self.worn.values()) + self.joined

    def wearing(self, worn: Mapping[str, int], joined: int = 0) -> Need:
        """The same for who wears this."""
        return self._replace(worn=worn, joined=joined)

    def times(self, count: int) -> Need:
        """What so many need together that each need this."""
        return self._replace(beside=count * self.beside)

    def and_of(self, other: Need) -> Need:
        """What both need together."""
        worn, joined = {**self.worn, **other.worn}, max(self.joined, other.joined)
        return Need(self.beside + other.beside, max(self.beyond, other.beyond), worn, joined)


NOTHING = Need()


class Kept(NamedTuple):
    """The bytes that a request, or several together, keep where others are computed: those of outputs that are
    `finished` while others of the request are not, and of `states` that are paused.
    """

    finished: int = 0
    states: int = 0

    @property
    def all(self) -> int:
        """Both."""
        return self.finished + self.states

    def and_of(self, other: Kept) -> Kept:
        """What both keep together."""
        return Kept(self.finished + other.finished, self.states + other.states)


NONE = Kept()
