"""Whether there is room for a request in every pool of a group, in which way, and what is said of one that never fits.

The front asks before anything is computed. Each process of a pool knows of its own stages what they take, from two
small requests of a kind that go through all pools once, one pool after the other and all replicas of one at the same
time, while nobody is told (`engine/foretelling.py`). Where several refuse a request, it is told the smallest of what
they say is the nearest. It asks them as well whether requests can wear adapters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import msgspec

from omnimuse.core.errors import EngineClosedError, EngineDeadError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.deploy.connectors import Blob
from omnimuse.deploy.frames import AnyFrame, Close, Put, Try, TryOn, Way, Weigh, Weighed
from omnimuse.deploy.group import Seat
from omnimuse.deploy.wire import Ended, of_ended, pack

Pieces = list[tuple[Put, Blob | None]]
Answer = tuple[Seat, Weighed]
"""What a replica says of a request."""


@dataclass(eq=False)
class Asked:
    """What `seat` was asked: its answer, to come, and the pieces that come before."""

    seat: Seat
    answer: asyncio.Future[Weighed | Close]
    pieces: Pieces = field(default_factory=list)


class Foretelling:
    """For one front, on its event loop. One kind is tried at a time: others of it are known then. `freed` is called
    when seats are kept for it no longer.
    """

    def __init__(self, seats: Callable[[], list[list[Seat]]], freed: Callable[[], None]) -> None:
        self._seats, self._freed = seats, freed
        self._one = asyncio.Lock()
        self._moved = asyncio.Event()
        self._asked: dict[str, Asked] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._names = (f"weighed-{number}" for number in count())

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have the loop do `work`, which asks."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Nobody is asked any more."""
        for task in self._tasks:
            task.cancel()

    async def fitted(self, request: Request, ended: Callable[[int], None], alone: Container[int] = ()) -> Request:
        """`request` in the first way for which all pools have room; RequestError, with the nearest, if there is none.
        Who would have to be tried waits for others that are; who is known does not. Where this is cancelled, small ones
        are drawn no further.

        `ended` hears of a pool that went while small ones were tried in it; they are tried again unless it raises. In
        pools in which it is to be `alone` nobody else is then, so that it is known whom to blame.
        """
        if (way := _way(await self._answers(request))).doubted:
            async with self._one:
                while (way := _way(answers := await self._answers(request))).doubted:
                    doubts = [seat for seat, answer in answers if _doubts(answer, way.tile)]
                    lost = await self._try(replace(request, tile=way.tile), doubts, alone)
                    if lost is not None:
                        ended(lost)
        return replace(request, tile=way.tile, needs=way.needs)

    async def try_on(self, loras: Sequence[Lora]) -> None:
        """Have every replica of every pool read what requests are to wear; what speaks against it is raised."""
        try:
            await self.begin(self._try_on(list(loras)))
        except asyncio.CancelledError:
            raise EngineClosedError("the engine was closed before it came to this; make a new one") from None

    async def _try_on(self, loras: list[Lora]) -> None:
        if not all(any(seat.link is not None for seat in pool) for pool in self._seats()):
            raise EngineDeadError("a pool has no process that is ready; try again in a moment")
        for pool in range(len(self._seats())):
            for asked in await self._say(await self._there(pool), TryOn("", loras)):
                if asked.answer.exception() is not None:
                    raise EngineDeadError("a process of a pool ended while it read them; try again in a moment")
                close = asked.answer.result()
                if isinstance(close, Close) and close.kind:
                    raise of_ended(Ended("", close.kind, close.message, close.param, close.retry_after))

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

    def moved(self) -> None:
        """A seat is there, again perhaps, or somebody has left one."""
        self._moved.set()

    async def _answers(self, request: Request) -> list[Answer]:
        """What every replica of every pool says, of which at least one is there."""
        pools = await asyncio.gather(*(self._weighed(pool, request) for pool in range(len(self._seats()))))
        return [answer for answers in pools for answer in answers]

    async def _weighed(self, pool: int, request: Request) -> list[Answer]:
        while True:
            every = await self._say(await self._there(pool), Weigh("", pack(request)))
            answers = [(asked.seat, asked.answer.result()) for asked in every if asked.answer.exception() is None]
            if found := [(seat, answer) for seat, answer in answers if isinstance(answer, Weighed)]:
                return found

    async def _try(self, request: Request, doubts: Sequence[Seat], alone: Container[int]) -> int | None:
        """Have small ones go through all pools, in each through the replicas with `doubts` at the same time; the pool
        that was lost by it, if one was.
        """
        pieces, vain, packed = Pieces(), False, pack(request)
        for pool in range(last := len(self._seats())):
            try:
                there = await self._free(pool, request.id, pool in alone)
                seats = [seat for seat in there if seat in doubts] or there[:1]
                every = await self._say(seats, Try("", packed, vain), pieces)
            finally:
                if kept := [seat for seat in self._seats()[pool] if seat.holder == request.id]:
                    for seat in kept:
                        seat.holder = None
                    self._freed()
            if any(asked.answer.exception() is not None for asked in every):
                return pool
            whole = sum(put.last for put, _ in every[0].pieces) == 2
            vain = vain or (pool < last - 1 and not whole)
            pieces = [] if vain else every[0].pieces
        return None

    async def _there(self, pool: int) -> list[Seat]:
        """The replicas of a pool that are there, once one is."""
        while not (seats := [seat for seat in self._seats()[pool] if seat.link is not None]):
            self._moved.clear()
            await self._moved.wait()
        return seats

    async def _free(self, pool: int, request_id: str, alone: bool) -> list[Seat]:
        """The same, once none of them is kept for another request; where it is to be `alone`, once they are empty, and
        kept for it meanwhile.
        """
        while True:
            seats = await self._there(pool)
            if all(seat.holder in (None, request_id) for seat in seats):
                for seat in seats if alone else ():
                    seat.holder = request_id
                if not alone or not any(seat.streams for seat in seats):
                    return seats
            self._moved.clear()
            await self._moved.wait()

    async def _say(
        self, seats: Sequence[Seat], frame: Weigh | Try | TryOn, pieces: Sequence[tuple[Put, Blob | None]] = ()
    ) -> list[Asked]:
        """Until all of `seats`, which are there, have answered `frame`, or are lost: the error of their answer."""
        every = [Asked(seat, asyncio.get_running_loop().create_future()) for seat in seats]
        names = [next(self._names) for _ in seats]
        self._asked |= dict(zip(names, every, strict=True))
        try:
            for name, asked in zip(names, every, strict=True):
                assert asked.seat.link is not None
                asked.seat.link.send(msgspec.structs.replace(frame, stream=name))
                for put, blob in pieces:
                    asked.seat.link.send(msgspec.structs.replace(put, stream=name), blob)
            await asyncio.wait([asked.answer for asked in every])
        except asyncio.CancelledError:  # nobody waits for it any more
            for name, asked in zip(names, every, strict=True):
                if asked.seat.link is not None and not asked.answer.done():
                    asked.seat.link.send(Close(name))
            raise
        finally:
            for name in names:
                del self._asked[name]
        return every


def _way(answers: Sequence[Answer]) -> Way:
    """The first way that no replica refuses, with the most that one of them needs. If there is none, the first of which
    one knows nothing, and so not what to ask for instead; RequestError if they all know, of that way in which the
    nearest is largest.
    """
    ways = list(zip(*(answer.ways for _, answer in answers), strict=True))
    for way in ways:
        if not any(each.message for each in way):
            return Way(way[0].tile, any(each.doubted for each in way), max(each.needs for each in way))
    for way in ways:
        if any(each.doubted for each in way):
            return Way(way[0].tile, True)
    refusals = (min((each for each in way if each.message), key=_nearest) for way in ways)
    refusal = max(refusals, key=_nearest)
    raise RequestError(refusal.message, refusal.param)


def _doubts(answer: Weighed, tile: int) -> bool:
    """Whether who answers knows nothing of that way."""
    return any(way.doubted for way in answer.ways if way.tile == tile)


def _nearest(way: Way) -> int:
    return way.nearest
