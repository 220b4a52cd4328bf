"""Whether there is room for a request, in which way it fits, and what is said of one that never does.

Asked by the engine when a request comes and when it would begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Lora, loras_of
from omnimuse.core.request import Request
from omnimuse.engine.foretelling import Foretelling, Unwanted
from omnimuse.engine.needs import NOTHING, Need
from omnimuse.lora.adapters import Adapters
from omnimuse.worker.room import Space
from omnimuse.worker.runner import Runner


class Refusal(NamedTuple):
    """Why a request never fits and what to ask for instead, by which parameter; `nearest` is how large that is."""

    message: str
    param: str | None
    nearest: int


class Way(NamedTuple):
    """How a request could be made: in tiles of how many pixels (0: as it usually is), whether nothing is known of that,
    why it never fits so, and what one output then needs beside the weights, as far as that is known.
    """

    tile: int
    doubted: bool
    refusal: Refusal | None
    needs: int


@dataclass(frozen=True)
class Fitting:
    """Of the requests of one engine. `runner` says what they take at the least, `foretelling` what else is known."""

    runner: Runner
    foretelling: Foretelling

    def asks(self, request: Request, space: Space) -> tuple[int, int, Need]:
        """What one output of it asks for: row tokens, bytes to be remembered at most, and what it needs. RequestError
        for what is refused; but if nobody knows yet what to ask for instead, it asks for nothing: small ones of its
        kind are drawn when it would begin, and then it is.
        """
        self._adapters.refuse_too_many(loras_of(request.params.loras))
        tokens, (_, most) = self.runner.tokens(request), self.runner.remembers(request)
        ways = self.foretelling.extent.ways(request)
        if (refusal := self._refusal(request, space, self.foretelling.extent.ways)) is None:
            return tokens, most, self.need(request, space)
        if self.runner.hand.all and any(self.foretelling.doubts(way, space.room) for way in ways):
            return 1, 0, NOTHING
        raise RequestError(refusal.message, refusal.param)

    def ways(self, request: Request, space: Space) -> list[Way]:
        """In which ways it could be made, what takes most first."""
        known = self.foretelling
        return [
            Way(
                way.tile,
                known.doubts(way, space.room),
                self._refusal(way, space, lambda each: [each]),
                self._told(way, space),
            )
            for way in known.extent.ways(request)
        ]

    def _refusal(self, request: Request, space: Space, ways: Callable[[Request], list[Request]]) -> Refusal | None:
        """That of what has no room in `space` in any of its `ways`, and of what can never be remembered."""
        if any(self._fits(way, space) for way in ways(request)):
            return None
        room, kept, extent = space.room, self.runner.config.running_bytes, self.foretelling.extent
        known = any(map(self.foretelling.knows, ways(request)))

        def fits(each: Request) -> bool:
            return any(self._fits(way, space, sure=known) for way in ways(each))

        hint, param, nearest = extent.nearest(request, fits)
        if room is not None and (needed := min(self._takes(way, space) for way in ways(request))) > room:
            worn = self._dressed(NOTHING, request).most
            said = f"{extent.told(request)} takes {told_bytes(needed)} at the least beside the weights" + (
                f", {told_bytes(worn)} of it for its adapters" if worn else ""
            )
            instead = [(hint, param)] + [(told, name) for told, name, each in _lighter(request) if fits(each)]
            if not nearest and len(instead) > 1:
                del instead[0]
            hints, param = "; ".join(told for told, _ in instead), instead[0][1]
            message = f"{said}, of which there are {told_bytes(room)}; {hints} (--room says how much there is)"
            return Refusal(message, param, nearest)
        return Refusal(
            f"{request.outputs} x {told_bytes(self.runner.remembers(request)[0])} are to be remembered while this "
            f"is written, and there is room for {told_bytes(kept or 0)} (running_bytes); {hint}",
            param or "max_tokens",
            nearest,
        )

    def first_way(self, request: Request, space: Space) -> Request:
        """`request` in the first way that there is room for, with what it needs, after small ones of every kind were
        drawn of which nobody knows; RequestError if there is none.
        """
        known = self.foretelling
        for way in known.extent.ways(request):
            if known.doubts(way, space.room):
                known.learn(way)
            if self._fits(way, space):
                return replace(way, needs=self._told(way, space))
        if (refusal := self._refusal(request, space, known.extent.ways)) is None:
            # A way that was passed over for smaller tiles, of which nothing could be learnt.
            return next(way for way in known.extent.ways(request) if self._fits(way, space))
        raise RequestError(refusal.message, refusal.param)

    def learn(self, together: Sequence[Request], space: Space, resting: Need = NOTHING) -> bool:
        """Draw small ones of every kind of which nobody knows, if what is in progress `together`, each in its way,
        might have no room beside what those need who are `resting`; in a pool the front sees to that. Whether all were
        drawn that somebody waits for.
        """
        known, room = self.foretelling, space.room
        needs = (self._dressed(known.at_most(each, space.coming), each).times(each.outputs) for each in together)
        if room is None or not self.runner.hand.all or reduce(Need.and_of, needs, resting).most <= room:
            return True
        try:
            for each in together:
                if known.can_learn(each):
                    known.learn(each)
        except Unwanted:
            return False
        return True

    def need(self, request: Request, space: Space) -> Need:
        """What is foretold of one output of `request`, in the first way that there is room for. Of a kind of which
        nobody knows, it is what is guessed far too high, unless small ones are drawn before it begins beside others.
        """
        known, room = self.foretelling, space.room
        ways = known.extent.ways(request)
        way = next((way for way in ways if room is None or self._takes(way, space) <= room), ways[-1])
        tried = self.runner.hand.all and known.can_learn(way)
        need = known.needs(way, space.coming) if tried else known.at_most(way, space.coming)
        return self._dressed(need, request)

    def _fits(self, request: Request, space: Space, *, sure: bool = False) -> bool:
        kept = self.runner.config.running_bytes
        return (space.room is None or self._takes(request, space, sure=sure) <= space.room) and (
            kept is None or self._remembers(request) <= kept
        )

    def _takes(self, request: Request, space: Space, *, sure: bool = False) -> int:
        """The bytes that one output takes at the least; where one has to be `sure`, and in tiles that cannot be tried
        where smaller ones can, of an unknown kind what is guessed far too high.
        """
        known = self.foretelling
        guessed = sure or (not known.can_learn(request) and self._may_be_smaller(request))
        foretold = known.at_most(request, space.coming).most if guessed else known.takes(request, space.coming)
        return max(self.runner.working(request, space.tokens), foretold) + self._dressed(NOTHING, request).most

    def _told(self, way: Request, space: Space) -> int:
        """What one output needs and wears, for people; 0 where the former is not known."""
        foretold = self.foretelling.takes(way, space.coming)
        return foretold + self._dressed(NOTHING, way).most if foretold else 0

    @property
    def learnt(self) -> tuple[int, int]:
        """Changes when more is known of what requests take."""
        return self.foretelling.kinds, self._adapters.readings

    def late(self, admit: list[Request], together: Sequence[Request], learnt: tuple[int, int]) -> list[Request]:
        """Those of `admit` who wait for the next tick, as more is known than was `learnt` before: all, unless it is one
        alone of a kind that was known, which has read what it wears.
        """
        return [] if len(together) == 1 and self.foretelling.kinds == learnt[0] else admit

    def untried(self, request: Request) -> Sequence[Lora]:
        """What it wears of which nobody knows what it takes; of several ranks any may have no room for it now."""
        worn = [lora for lora in loras_of(request.params.loras) or () if lora.scale]
        return worn if self.runner.pipeline.ctx.mesh.size > 1 else self._adapters.unread(worn)

    def _dressed(self, need: Need, request: Request) -> Need:
        """`need` with what `request` wears, as far as that was read."""
        worn = loras_of(request.params.loras)
        return need.wearing(self._adapters.sizes(worn), self._adapters.joined(worn))

    @property
    def _adapters(self) -> Adapters:
        return self.runner.pipeline.ctx.adapters

    def _may_be_smaller(self, request: Request) -> bool:
        """Whether it is in tiles that are smaller than usual, or in usual ones and of smaller ones something is known,
        or can be.
        """
        known = self.foretelling
        ways = known.extent.ways(request)[1:] if known.extent.tile(request) else []
        return bool(request.tile) or any(known.can_learn(way) or known.knows(way) for way in ways)

    def _remembers(self, request: Request) -> int:
        return self.runner.remembers(request)[0] * request.outputs


def _lighter(request: Request) -> Iterator[tuple[str, str, Request]]:
    """`request` without what takes memory beside its size: in words, by which parameter, and as it is then."""
    params = request.params
    if params.loras:
        yield "without its adapters it may fit as it is", "loras", replace(request, params=replace(params, loras=()))
    yield "with cache='none' it may fit as it is", "cache", replace(request, params=replace(params, cache="none"))
