"""The front of a group of pools: the face of one engine before several that each run some stages of a pipeline.

`Pools` has the face of `engine/local.py` (`Background`): the Python API and a server's worker drive either. All edges
meet here: what a request takes along comes from one pool and goes to the replica with the least to do of the next, and
is kept until that has handed on what it made of it. So a pool that dies costs what it was doing, and that is done once
more. A pool takes on no more than its window, and the pools before it no more than that leaves room for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

import msgspec
import torch

from omnimuse.core.config import Config
from omnimuse.core.errors import (
    CapacityError,
    ConfigError,
    DeadlineError,
    EngineClosedError,
    EngineDeadError,
    OmnimuseError,
    PoisonError,
    RequestCancelled,
    RequestError,
)
from omnimuse.core.loras import Lora
from omnimuse.core.output import Chunk, Done, Event, Failed, Result
from omnimuse.core.request import Ask, Request
from omnimuse.deploy.connectors import Blob
from omnimuse.deploy.foretelling import Foretelling
from omnimuse.deploy.frames import AnyFrame, Close, Credit, Hold, Open, Put, Said
from omnimuse.deploy.group import Ears, Group, Seat
from omnimuse.deploy.placing import NO_ENGINE
from omnimuse.deploy.routing import least_loaded
from omnimuse.deploy.wire import Ended, of_ended, pack
from omnimuse.worker.find import find
from omnimuse.worker.pace import Shared
from omnimuse.worker.packing import unpack
from omnimuse.worker.part import parts

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
UNTIMED = (
    "so many times what a request takes alone, which no process of a pool knows; use seconds, or a class that means "
    "some (ScheduleConfig.deadlines)"
)
RETRY = 1.0
"""Seconds after which who found the queue full may try again."""


@dataclass(eq=False)
class Job:
    """A request on its way. `stream` names this try of it; `seats` is where it is, by pool, `kept` what went over the
    edge into each, and `base` the pool whose edge was the last to close. `told` is how far its outputs were told.
    Through pools that were lost with it, it goes `alone`, so that a second loss shows who is to blame.
    """

    request: Request
    listener: Callable[[Event], None]
    came: float
    stream: str
    begun: float | None = None
    base: int = 0
    seats: dict[int, Seat] = field(default_factory=dict)
    kept: dict[int, list[tuple[Put, Blob | None]]] = field(default_factory=dict)
    told: dict[tuple[int, str], int] = field(default_factory=dict)
    held: bool = False
    alone: set[int] = field(default_factory=set)
    late: asyncio.TimerHandle | None = None
    fitting: asyncio.Task[None] | None = None

    @property
    def order(self) -> tuple[float, float, float]:
        """Who comes first: the higher priority, then the nearer deadline, then who came first."""
        request = self.request
        return (-request.priority, request.deadline or float("inf"), self.came)


class Pools:
    """All pools that `config` places. What cannot be is raised here; takes as long as the slowest pool loads.

    `faults` is what `deploy/faults.py` reads.
    """

    def __init__(
        self, config: Config, on_death: Callable[[EngineDeadError], None] | None = None, faults: str = ""
    ) -> None:
        found = find(config)
        self.door, self.config = found.door, config
        self.retries, self.asleep = 0, False
        self.company: list[Shared] = []  # each pool measures for itself
        self._last = len(parts(config, found.spec)) - 1
        self._spec, self._on_death, self._faults = found.spec, on_death, faults
        self._jobs: dict[str, Job] = {}
        self._waiting: list[list[Job]] = [[] for _ in config.deploy.pools]
        self._lock = threading.Lock()
        self._over: EngineDeadError | None = None
        self._draw, self._loop = Random(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="omnimuse-pools", daemon=True)
        self._thread.start()
        self._group: Group | None = None
        self._foretelling = Foretelling(lambda: self.group.seats, self._feed)
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self.close()
            raise

    # -- from any thread ---------------------------------------------------------------------------------------------

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that the pools compute with."""
        return self.group.place

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """The bytes of every component, and of its largest block."""
        return self.group.weights

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, in all pools, and of those that nobody wears."""
        return self.group.adapters

    @property
    def lost(self) -> dict[str, int]:
        """By pool, how many of its processes were replaced since the start."""
        pools = zip(self.config.deploy.pools, self.group.seats, strict=True)
        return {pool.name: sum(seat.restarts for seat in seats) for pool, seats in pools}

    @property
    def away(self) -> list[str]:
        """The pools no process of which can take a request now."""
        pools = zip(self.config.deploy.pools, self.group.seats, strict=True)
        return [pool.name for pool, seats in pools if not any(seat.ready for seat in seats)]

    @property
    def group(self) -> Group:
        """The processes."""
        assert self._group is not None
        return self._group

    def make_request(self, ask: Ask) -> Request:
        """`ask`, checked and completed; nothing is queued yet."""
        request = self.door.make_request(ask, time.monotonic(), secrets.randbelow(2**32))
        if request.times is not None:
            raise RequestError(f"deadline={ask.deadline!r} is {UNTIMED}", "deadline")
        return request

    def submit(self, request: Request, listener: Callable[[Event], None]) -> None:
        """Queue `request`; its events, the last of which is Done or Failed, go to `listener`, unless this raises."""
        self.door.with_cache(request)
        with self._lock:
            if self._over is not None:
                raise type(self._over)(str(self._over))
            limit, waiting = self.config.schedule.max_queue, sum(job.begun is None for job in self._jobs.values())
            if waiting >= limit:
                raise CapacityError(f"the queue is full ({limit} requests are waiting); try again later", RETRY)
            job = self._jobs[request.id] = Job(request, listener, time.monotonic(), request.id)
        self._loop.call_soon_threadsafe(self._enter, job)

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step boundary."""
        self._soon(request_id, lambda job: self._fail(job, RequestCancelled("the request was cancelled")))

    def pause(self, request_id: str) -> None:
        """Hold a request between steps; RequestError for one that is unknown or has ended."""
        self._hold(request_id, True)

    def resume(self, request_id: str) -> None:
        """Let a paused request go on; RequestError for one that is unknown or has ended."""
        self._hold(request_id, False)

    def between_ticks(self, work: Callable[[], Any]) -> Any:
        """ConfigError: what one engine does between its ticks, several processes do not do together."""
        return self.engine

    @property
    def engine(self) -> Any:
        """ConfigError: there are several."""
        raise ConfigError(NO_ENGINE)

    def try_on(self, loras: Sequence[Lora]) -> None:
        """Have all processes read what requests are to wear; RequestError, or CapacityError, for what none can wear."""
        asyncio.run_coroutine_threadsafe(self._foretelling.try_on(loras), self._loop).result()

    def close(self) -> None:
        """End all pools; requests in flight fail. Safe to call twice."""
        if self._loop.is_closed():
            return
        self._end_all(EngineClosedError("the engine was closed before the request was done; try again in a moment"))
        if self._group is not None:
            self._loop.call_soon_threadsafe(self._foretelling.close)
            asyncio.run_coroutine_threadsafe(self._group.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _soon(self, request_id: str, work: Callable[[Job], None]) -> bool:
        with self._lock:
            job = self._jobs.get(request_id)
        if job is not None:
            self._loop.call_soon_threadsafe(work, job)
        return job is not None

    def _hold(self, request_id: str, held: bool) -> None:
        def hold(job: Job) -> None:
            job.held = held
            if held and not job.seats:  # it keeps no seat from others meanwhile
                self.group.release(job.request.id)
            for seat in job.seats.values():
                if seat.link is not None:
                    seat.link.send(Hold(job.stream, held))
            self._feed()

        if not self._soon(request_id, hold):
            raise RequestError(f"there is no request {request_id}; it is unknown or has ended", "request_id")

    # -- on the event loop -------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        ears = Ears(self._hear, self._lost, self._joined, self._break, self._retried)
        self._group = Group(self.config, self._spec, ears, self._faults)
        await self._group.start()

    def _retried(self, forwards: int) -> None:
        self.retries += forwards

    def _enter(self, job: Job) -> None:
        if (deadline := job.request.deadline) is not None:
            why = DeadlineError("the deadline of the request has passed")
            job.late = self._loop.call_later(deadline - time.monotonic(), self._fail, job, why)
        job.fitting = self._foretelling.begin(self._fit(job))

    async def _fit(self, job: Job) -> None:
        """Have it wait for the first pool, in the way in which it fits into all."""
        try:
            job.request = await self._foretelling.fitted(job.request, partial(self._blame, job), job.alone)
        except OmnimuseError as error:
            self._fail(job, error)
        if self._jobs.get(job.request.id) is job:  # it may have ended meanwhile
            self._waiting[0].append(job)
            self._feed()

    def _feed(self) -> None:
        """Give to every pool what waits for it, as far as there is room; the last one first, which makes room."""
        for pool in range(self._last, -1, -1):
            for job in sorted(self._waiting[pool], key=lambda job: job.order):
                seat = None if job.held else self._chosen(job, pool)
                if seat is not None:
                    self._waiting[pool].remove(job)
                    self._sit(job, seat)
        self._foretelling.moved()

    def _chosen(self, job: Job, pool: int) -> Seat | None:
        """A seat with room; for who is to be alone, one that is kept free of others and is empty."""
        seats = self.group.seats[pool]
        if pool not in job.alone:
            return least_loaded(seats, self._draw)
        kept = next((seat for seat in seats if seat.holder == job.request.id), None)
        if kept is None:
            free = [seat for seat in seats if seat.holder is None and seat.link is not None]
            if not free:
                return None
            kept = min(free, key=lambda seat: seat.load)
            kept.holder = job.request.id
        return kept if kept.open and not kept.streams else None

    def _sit(self, job: Job, seat: Seat) -> None:
        assert seat.link is not None
        pool = seat.pool
        job.begun = job.begun or time.monotonic()
        job.seats[pool], seat.streams[job.stream] = seat, job
        seat.link.send(Open(job.stream, pack(job.request)))
        for put, blob in job.kept.get(pool, ()):
            seat.link.send(msgspec.structs.replace(put, stream=job.stream), blob)
        if job.base == pool:
            self._leave(job, pool - 1)

    def _leave(self, job: Job, pool: int) -> None:
        if (seat := job.seats.pop(pool, None)) is not None:
            seat.streams.pop(job.stream, None)
            self.group.release(job.request.id)

    def _hear(self, seat: Seat, frame: AnyFrame, blob: Blob | None) -> None:
        job: Job | None = seat.streams.get(frame.stream)
        if job is None:  # it ended meanwhile, or is none
            self._foretelling.hear(seat, frame, blob)
            return
        try:
            match frame:
                case Put() if seat.pool == self._last:
                    self._finish(job, frame, blob)
                case Put():
                    self._take(job, seat.pool + 1, frame, blob)
                case Credit():
                    if (before := job.seats.get(seat.pool - 1)) is not None and before.link is not None:
                        before.link.send(frame)
                case Said():
                    self._tell(job, unpack(frame.head, memoryview(b"") if blob is None else blob.view(), CPU))
                case Close():
                    ended = Ended(job.request.id, frame.kind, frame.message, frame.param, frame.retry_after)
                    self._fail(job, of_ended(ended))
        except EngineDeadError as error:  # what came makes no sense
            self._fail(job, error)

    def _take(self, job: Job, pool: int, put: Put, blob: Blob | None) -> None:
        """A piece comes over the edge into `pool`."""
        job.kept.setdefault(pool, []).append((put, blob))
        if put.last:
            job.base = pool
            job.kept = {at: pieces for at, pieces in job.kept.items() if at >= pool}  # what waits farther on stays
        if (seat := job.seats.get(pool)) is not None:
            assert seat.link is not None
            seat.link.send(put, blob)
            if put.last:
                self._leave(job, pool - 1)
        elif put.number == 0:
            self._waiting[pool].append(job)
        self._feed()

    def _tell(self, job: Job, event: Event) -> None:
        """Deliver an event of a pool; of an output that was begun anew, only what was not told before."""
        event = replace(event, request_id=job.request.id)
        if isinstance(event, Chunk):
            told = job.told.get((event.output, event.medium), 0)
            sound = event.medium == "audio"
            end = event.start + (event.data.shape[-1] if sound else len(event.data))
            if end <= told:
                return
            if event.start < told:
                cut = told - event.start
                event = replace(event, start=told, data=event.data[..., cut:] if sound else event.data[cut:])
            job.told[event.output, event.medium] = end
        self._deliver(job, event)

    def _finish(self, job: Job, put: Put, blob: Blob | None) -> None:
        told = unpack(put.head, memoryview(b"") if blob is None else blob.view(), CPU)
        request = job.request
        told["timings"]["queue"] = (job.begun or job.came) - job.came
        told["written"], told["texts"] = tuple(told["written"]), tuple(told["texts"])
        seeds = [request.seed(index) for index in range(request.outputs)]
        params = replace(request.params, extra=request.extra)
        result = Result(request.id, request.prompt, params, seeds=seeds, needs=request.needs, **told)
        self._end(job, Done(request.id, result))

    def _fail(self, job: Job, error: Exception) -> None:
        if not isinstance(error, OmnimuseError):
            error = EngineDeadError(str(error))
        self._end(job, Failed(job.request.id, error))

    def _end(self, job: Job, event: Done | Failed) -> None:
        with self._lock:
            if self._jobs.pop(job.request.id, None) is None:
                return
        for awaited in (job.late, job.fitting):  # with what is tried for it
            if awaited is not None:
                awaited.cancel()
        self._withdraw(job)
        self._deliver(job, event)
        self._feed()

    def _withdraw(self, job: Job) -> None:
        """Take a try of a request back from wherever it is."""
        for seat in job.seats.values():
            seat.streams.pop(job.stream, None)
            if seat.link is not None:
                seat.link.send(Close(job.stream))
        job.seats = {}
        self.group.release(job.request.id)
        for waiting in self._waiting:
            if job in waiting:
                waiting.remove(job)

    def _deliver(self, job: Job, event: Event) -> None:
        """By the loop, which logs what a listener fails with: it must not take everybody's pools with it."""
        self._loop.call_soon(job.listener, event)

    # -- when a pool is gone -----------------------------------------------------------------------------------------

    def _lost(self, seat: Seat) -> None:
        """What was in it goes on from the last edge that has closed; what had left it goes on as it is."""
        jobs: list[Job] = list(seat.streams.values())
        seat.streams, seat.holder = {}, None
        self._foretelling.lost(seat)
        for job in jobs:
            if job.base > seat.pool:
                job.seats.pop(seat.pool, None)
                continue
            try:
                self._blame(job, seat.pool)
            except PoisonError as error:
                self._fail(job, error)
            else:
                self._replay(job)
        self._feed()

    def _joined(self, seat: Seat) -> None:
        self._feed()

    def _blame(self, job: Job, lost: int) -> None:
        """That pool was lost with it: from now on it goes through it alone; PoisonError the second time."""
        if lost in job.alone:
            name = self.config.deploy.pools[lost].name
            raise PoisonError(f"the request ended its pool twice ({name}); ask for another size, or fewer outputs")
        job.alone.add(lost)

    def _replay(self, job: Job) -> None:
        self._withdraw(job)
        job.stream += "~"
        job.kept = {job.base: job.kept.get(job.base, [])}
        log.warning("request %s goes on in a new process of its pool, from where it came to that", job.request.id)
        self._waiting[job.base].append(job)

    def _break(self, error: Exception) -> None:
        self._end_all(EngineDeadError(f"a pool is gone for good ({error}); start the engine again"))

    def _end_all(self, error: EngineDeadError) -> None:
        with self._lock:
            first, self._over = self._over is None, self._over or error
            jobs = list(self._jobs.values())
        if first and self._on_death is not None and not isinstance(error, EngineClosedError):
            self._on_death(error)
        for job in jobs:
            self._loop.call_soon_threadsafe(self._fail, job, error)
