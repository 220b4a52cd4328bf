"""Whether there is room for a request in every pool of a group, in which way, and what is said of one that never fits.

The front asks before anything is computed. Each pool knows of its own stages what they take, from two small requests of
a kind that go through all pools once, one pool after the other, while nobody is told (`engine/foretelling.py`). Where
several refuse a request, it is told the smallest of what they say is the nearest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import msgspec

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Request
from omnimuse.deploy.connectors import Blob
from omnimuse.deploy.frames import AnyFrame, Close, Put, Try, Way, Weigh, Weighed
from omnimuse.deploy.group import Seat
from omnimuse.deploy.wire import pack

Pieces = list[tuple[Put, Blob | None]]


@dataclass(eq=False)
class Asked:
    """What `seat` was asked: its answer, to come, and the pieces that come before."""

    seat: Seat
    answer: asyncio.Future[Weighed | Close]
    pieces: Pieces = field(default_factory=list)


class Foretelling:
    """For one front, on its event loop. One request is asked about at a time: others of its kind know then."""

    def __init__(self, seats: Callable[[], list[list[Seat]]]) -> None:
        self._seats = seats
        self._one = asyncio.Lock()
        self._joined = asyncio.Event()
        self._asked: dict[str, Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._names = (f"weighed-{number}" for number in count())

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the loop do `work`, which asks."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Nobody is asked any more."""
        for task in self._tasks:
            task.cancel()

    async def fitted(self, request: Request, ended: Callable[[int], None]) -> Request:
        """`request` in the first way for which all pools have room; RequestError, with the nearest, if there is none.

        `ended` hears of a pool that went while small ones were tried in it; they are tried again unless it raises.
        """
        async with self._one:
            while (way := _way(await self._answers(request))).doubted:
                lost = await self._try(replace(request, tiled=way.tiled))
                if lost is not None:
                    ended(lost)
        return replace(request, tiled=way.tiled)

    def hear(self, seat: Seat, frame: AnyFrame, blob: Blob | None) -> None:
        """A frame of no request that is in progress."""
        asked = self._asked.get(frame.stream)
        if asked is None or asked.seat is not seat or asked.answer.done():
            return
        if isinstance(frame, Put):
            asked.pieces.append((frame, blob))
        elif isinstance(frame, Weighed | Close):
            asked.answer.set_result(frame)

    def lost(self, seat: Seat) -> None:
        """That seat is gone."""
        for asked in self._asked.values():
            if asked.seat is seat and not asked.answer.done():
                asked.answer.set_exception(ConnectionError())

    def joined(self) -> None:
        """A seat is there, again perhaps."""
        self._joined.set()

    async def _answers(self, request: Request) -> list[Weighed]:
        return await asyncio.gather(*(self._weighed(pool, request) for pool in range(len(self._seats()))))

    async def _weighed(self, pool: int, request: Request) -> Weighed:
        while True:
            try:
                answer = (await self._say(pool, Weigh(next(self._names), pack(request)))).answer.result()
            except ConnectionError:
                continue
            assert isinstance(answer, Weighed)
            return answer

    async def _try(self, request: Request) -> int | None:
        """Have small ones go through all pools; the one that was lost by it, if one was."""
        pieces, vain, last = Pieces(), False, len(self._seats()) - 1
        for pool in range(last + 1):
            try:
                asked = await self._say(pool, Try(next(self._names), pack(request), vain), pieces)
            except ConnectionError:
                return pool
            whole = sum(put.last for put, _ in asked.pieces) == 2
            vain = vain or (pool < last and not whole)
            pieces = [] if vain else asked.pieces
        return None

    async def _say(self, pool: int, frame: AnyFrame, pieces: Sequence[tuple[Put, Blob | None]] = ()) -> Asked:
        """Once the first of a pool's replicas is there, and until it has answered; ConnectionError if it is lost."""
        while (seat := next((seat for seat in self._seats()[pool] if seat.link is not None), None)) is None:
            self._joined.clear()
            await self._joined.wait()
        assert seat.link is not None
        asked = self._asked[frame.stream] = Asked(seat, asyncio.get_running_loop().create_future())
        try:
            seat.link.send(frame)
            for put, blob in pieces:
                seat.link.send(msgspec.structs.replace(put, stream=frame.stream), blob)
            await asked.answer
        finally:
            del self._asked[frame.stream]
        return asked


def _way(answers: Sequence[Weighed]) -> Way:
    """The first way that no pool refuses; RequestError if there is none, of that in which the nearest is largest."""
    ways = list(zip(*(answer.ways for answer in answers), strict=True))
    for way in ways:
        if not any(each.message for each in way):
            return Way(way[0].tiled, any(each.doubted for each in way))
    refusals = (min((each for each in way if each.message), key=_nearest) for way in ways)
    refusal = max(refusals, key=_nearest)
    raise RequestError(refusal.message, refusal.param)


def _nearest(way: Way) -> int:
    return way.nearest
