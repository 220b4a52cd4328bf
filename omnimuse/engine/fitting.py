"""Whether there is room for a request, in which way it fits, and what is said of one that never does.

Asked by the engine when a request comes and when it would begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Request
from omnimuse.engine.foretelling import Foretelling
from omnimuse.engine.needs import NOTHING, Need
from omnimuse.worker.room import Space
from omnimuse.worker.runner import Runner


class Refusal(NamedTuple):
    """Why a request never fits and what to ask for instead, by which parameter; `nearest` is how large that is."""

    message: str
    param: str | None
    nearest: int


class Way(NamedTuple):
    """How a request could be made: whether in tiles, whether nothing is known of that, and why it never fits so."""

    tiled: bool
    doubted: bool
    refusal: Refusal | None


@dataclass(frozen=True)
class Fitting:
    """Of the requests of one engine. `runner` says what they take at the least, `foretelling` what else is known."""

    runner: Runner
    foretelling: Foretelling

    def check(self, request: Request, space: Space) -> None:
        """RequestError for what is refused."""
        if (refusal := self._refusal(request, space, self.foretelling.extent.ways)) is not None:
            raise RequestError(refusal.message, refusal.param)

    def ways(self, request: Request, space: Space) -> list[Way]:
        """In which ways it could be made, what takes most first."""
        ways = self.foretelling.extent.ways(request)
        return [
            Way(way.tiled, self.foretelling.doubts(way, space.room), self._refusal(way, space, lambda each: [each]))
            for way in ways
        ]

    def _refusal(self, request: Request, space: Space, ways: Callable[[Request], list[Request]]) -> Refusal | None:
        """That of what has no room in `space` in any of its `ways`, and of what can never be remembered."""
        room, extent = space.room, self.foretelling.extent

        def least(each: Request) -> int:
            return min(self._takes(way, space) for way in ways(each))

        if room is not None and (needed := least(request)) > room:
            said = f"{told_bytes(needed)} at the least beside the weights, of which there are {told_bytes(room)}"
            hint, param, nearest = extent.nearest(request, lambda each: least(each) <= room)
            return Refusal(f"{extent.told(request)} takes {said}; {hint}", param, nearest)
        kept = self.runner.config.running_bytes
        if kept is not None and self._remembers(request) > kept:
            hint, param, nearest = extent.nearest(request, lambda each: self._remembers(each) <= kept)
            return Refusal(
                f"{request.outputs} x {told_bytes(self.runner.remembers(request)[0])} are to be remembered while this "
                f"is written, and there is room for {told_bytes(kept)} (running_bytes); {hint}",
                param or "max_tokens",
                nearest,
            )
        return None

    def first_way(self, request: Request, space: Space) -> Request:
        """`request` in the first way that there is room for, after small ones of every kind were drawn of which nobody
        knows; RequestError if there is none.
        """
        for way in self.foretelling.extent.ways(request):
            if self.foretelling.doubts(way, space.room):
                self.foretelling.learn(way)
            if space.room is None or self._takes(way, space) <= space.room:
                return way
        self.check(request, space)
        return request

    def learn(self, together: Sequence[Request], space: Space) -> None:
        """Draw small ones of every kind of which nobody knows, if what is in progress `together`, each in its way,
        might have no room.
        """
        known, room = self.foretelling, space.room
        needs = (known.at_most(each, space.coming).times(each.outputs) for each in together)
        if room is None or reduce(Need.and_of, needs, NOTHING).most <= room:
            return
        for each in together:
            if known.can_learn(each):
                known.learn(each)

    def need(self, request: Request, space: Space) -> Need:
        """What is foretold of one output of `request`, in the first way that there is room for. Of a kind of which
        nobody knows, it is what is guessed far too high, unless small ones are drawn before it begins beside others.
        """
        known, room = self.foretelling, space.room
        ways = known.extent.ways(request)
        way = next((way for way in ways if room is None or self._takes(way, space) <= room), ways[-1])
        tried = self.runner.hand.all and known.can_learn(way)
        return known.needs(way, space.coming) if tried else known.at_most(way, space.coming)

    def _takes(self, request: Request, space: Space) -> int:
        return max(self.runner.working(request, space.tokens), self.foretelling.takes(request, space.coming))

    def _remembers(self, request: Request) -> int:
        return self.runner.remembers(request)[0] * request.outputs
