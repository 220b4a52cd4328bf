"""Which replica draws the next request: the one with the least to do. The pool of workers asks, and the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Protocol, TypeVar

ASKED = 64
"""Places that are looked at for a request."""


class Place(Protocol):
    """Where requests can be drawn."""

    @property
    def open(self) -> bool:
        """Whether it can take a request now."""
        ...

    @property
    def holder(self) -> str | None:
        """The request for which it is kept free of others."""
        ...

    @property
    def load(self) -> int:
        """How many requests are in it."""
        ...


P = TypeVar("P", bound=Place)


def least_loaded(places: Sequence[P], draw: Random) -> P | None:
    """The open place with the fewest requests that is kept for nobody; None if there is none.

    Of more than `ASKED` only so many are looked at, drawn at random: to look at ten thousand takes longer than the next
    request takes to come. One without work, if a third are, is missed next to never.
    """
    some = places if len(places) <= ASKED else draw.sample(places, ASKED)
    best = _least(some)
    return best if best is not None or some is places else _least(places)


def _least(places: Iterable[P]) -> P | None:
    best: P | None = None
    for place in places:
        if place.open and place.holder is None and (best is None or place.load < best.load):
            best = place
            if not best.load:
                return best
    return best
