"""The replicas of all pools of a group: who starts them, how they join, and who hears when they are gone.

Driven by `deploy/pools.py` on its event loop. A replica is a process, or one for every rank of its pool, that
`deploy/replica.py` starts again whenever it ends (of several, when one does), here or, of a pool that is elsewhere,
where the launcher has room; or, with the connector `local`, an engine on a thread of this process.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import zmq.asyncio

from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError, EngineDeadError
from omnimuse.core.machine import resident
from omnimuse.core.pools import PoolConfig
from omnimuse.core.spec import Spec
from omnimuse.deploy.child import EdgeSettings
from omnimuse.deploy.connectors import Blob, Connector, Listening, Local, kind_of
from omnimuse.deploy.faults import Faults
from omnimuse.deploy.folder import PrivateFolder
from omnimuse.deploy.frames import AnyFrame, Share
from omnimuse.deploy.launch import Launcher
from omnimuse.deploy.launch import Local as LocalLauncher
from omnimuse.deploy.launchers import opened
from omnimuse.deploy.replica import PoolPlan, Replica
from omnimuse.deploy.scale import Scale
from omnimuse.deploy.station import COMMAND, Station
from omnimuse.deploy.wire import added
from omnimuse.engine.local import Background, start

LAST = 5.0
"""Seconds in which processes end that were told to; then they are killed."""
LOCAL = "local"


@dataclass(eq=False)
class Seat:
    """One replica of a pool, by its number and `name`, and by stream the requests that are in it."""

    pool: int
    name: str
    window: int
    link: Connector | None = None
    replica: Replica | None = None
    engine: Background | None = None
    streams: dict[str, Any] = field(default_factory=dict)
    holder: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it has loaded and joined."""
        return self.link is not None and (self.replica is None or self.replica.state == "ready")

    @property
    def restarts(self) -> int:
        """How many of its processes were replaced."""
        return 0 if self.replica is None else self.replica.restarts

    @property
    def ranks(self) -> int:
        """How many processes it is."""
        return 1 if self.replica is None else self.replica.plan.config.parallel.ranks

    @property
    def held(self) -> int:
        """The bytes that these held when they were ready, in this life or the one before; 0 where it is none."""
        return 0 if self.replica is None else self.replica.held * self.ranks

    @property
    def device(self) -> str:
        """Where it computes."""
        there = self.replica or self.engine
        return "" if there is None else there.place.get("device", "")

    @property
    def open(self) -> bool:
        """Whether it can take one more."""
        return self.link is not None and len(self.streams) < self.window

    @property
    def load(self) -> int:
        """How many requests are in it."""
        return len(self.streams)


@dataclass(frozen=True)
class Ears:
    """Who hears of it, all on the event loop: a frame that a seat sent, that one is gone, that one may take requests,
    that a pool will never come back, and how many forwards were tried again.
    """

    frame: Callable[[Seat, AnyFrame, Blob | None], None]
    lost: Callable[[Seat], None]
    joined: Callable[[Seat], None]
    broken: Callable[[Exception], None]
    retried: Callable[[int], None]


class Group:
    """All seats, by pool. `faults` is what `deploy/faults.py` reads."""

    def __init__(self, config: Config, spec: Spec, ears: Ears, faults: str = "") -> None:
        self.config, self.spec, self.faults = config, spec, faults
        self.seats: list[list[Seat]] = []
        self._ears = ears
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Condition()
        self._key = secrets.token_bytes(32)
        self._folder = PrivateFolder()
        self._context = zmq.asyncio.Context()
        self._listening: dict[str, Listening] = {}
        self._launcher: Launcher = LocalLauncher(COMMAND)
        self._lives: list[asyncio.Task[None]] = []
        self._engines: list[Background] = []
        self._refusal: Exception | None = None

    async def start(self) -> None:
        """Return when every replica has joined; the error for which one cannot be."""
        for number, pool in enumerate(self.config.deploy.pools):
            names = [f"{pool.name}-{replica}" for replica in range(pool.replicas)]
            self.seats.append([Seat(number, name, pool.window) for name in names])
        if away := [pool.name for pool in self.config.deploy.pools if pool.elsewhere]:
            if self.config.parallel.launch.launcher == "local":
                why = "it is elsewhere, and all is started here; use --launcher agent or ray"
                raise self.config.deploy.wrong_of(away[0], ConfigError(why))
            self._launcher = await opened(self.config, COMMAND)
        index = processes = 0
        for pool, seats in zip(self.config.deploy.pools, self.seats, strict=True):
            for replica, seat in enumerate(seats):
                config = self.config.of_pool(pool, replica)
                if pool.connector == LOCAL:
                    await asyncio.to_thread(self._make, pool, seat, config)
                else:
                    self._begin(pool, seat, config, index, processes)
                index, processes = index + 1, processes + pool.parallel.ranks
        async with self._news:
            await self._news.wait_for(lambda: self._refusal is not None or all(seat.ready for seat in self._all))
        if self._refusal is not None:
            raise self._refusal
        for seat in self._all:
            self._share(seat)

    def release(self, request_id: str) -> None:
        """No seat is kept any longer for a request."""
        for seat in self._all:
            seat.holder = None if seat.holder == request_id else seat.holder

    @property
    def place(self) -> dict[str, str]:
        """The dtypes and devices that the pools compute with."""
        places = [seat.replica.place for seat in self._all if seat.replica is not None]
        places += [engine.place for engine in self._engines]
        names = ("dtype", "device")
        return {name: "+".join(dict.fromkeys(place[name] for place in places if place)) for name in names}

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """What the components of all pools take."""
        found: dict[str, tuple[int, int]] = {}
        for seat in self._all:
            found |= seat.replica.weights if seat.replica is not None else {}
        for engine in self._engines:
            found |= engine.weights
        return found

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, in all pools, and of those that nobody wears."""
        there = [seat.replica.adapters for seat in self._all if seat.replica is not None]
        return added([*there, *(engine.adapters for engine in self._engines)])

    async def close(self) -> None:
        """End every replica, in good order or else by force; leaves nothing behind."""
        replicas = [seat.replica for seat in self._all if seat.replica is not None]
        for replica in replicas:
            replica.close()
        if self._lives:
            await asyncio.wait(self._lives, timeout=LAST)
        while not all(life.done() for life in self._lives):
            for replica in replicas:
                replica.kill()
            await asyncio.wait(self._lives, timeout=LAST)
        for seat in self._all:
            if seat.link is not None:
                seat.link.end()
        for engine in self._engines:
            await asyncio.to_thread(engine.close)
        for each in self._listening.values():
            each.close()
        await self._launcher.close()
        self._context.destroy(linger=0)
        self._folder.close()

    @property
    def _all(self) -> list[Seat]:
        return [seat for seats in self.seats for seat in seats]

    # -- a process ---------------------------------------------------------------------------------------------------

    def _begin(self, pool: PoolConfig, seat: Seat, config: Config, index: int, processes: int) -> None:
        """Start replica number `index` of all, before which there are so many `processes`."""
        if pool.connector not in self._listening:
            options = self.config.deploy.connectors.get(pool.connector, {})
            try:
                kind = kind_of(pool.connector, self._launcher.meeting, options)
                heard = kind.listen(self._folder.path, self._key, partial(self._soon, self._join))
            except ConfigError as error:
                raise self.config.deploy.wrong_of(pool.name, error) from None
            self._listening[pool.connector] = heard
        address = self._listening[pool.connector].address
        plan = PoolPlan(
            config,
            self.spec,
            self._folder.path,
            scale=Scale.fixed(self.config.host.processes),  # threads are shared with other groups, not among pools
            faults=self.faults,
            retried=self._ears.retried,
            command=COMMAND,
            edge=EdgeSettings(pool.connector, address, self._key.hex(), seat.name),
            seat=processes,
        )
        launcher = self._launcher if pool.elsewhere else LocalLauncher(COMMAND)
        seat.replica = Replica(index, plan, self._folder.path, partial(self._changed, seat), launcher)
        self._lives.append(asyncio.create_task(seat.replica.supervise(self._context)))

    def _changed(self, seat: Seat) -> None:
        replica = seat.replica
        assert replica is not None
        if replica.state == "broken":
            pool = self.config.deploy.pools[seat.pool].name
            why = replica.refusal or EngineDeadError(
                f"pool {pool} cannot be started ({replica.reason}); mend that, and start the engine again"
            )
            if isinstance(why, ConfigError):
                why = self.config.deploy.wrong_of(pool, why)
            if all(s.replica is not None and s.replica.state == "broken" for s in self.seats[seat.pool]):
                self._refusal = why
                self._ears.broken(why)
        self._tell()

    # -- an engine of this process -----------------------------------------------------------------------------------

    def _make(self, pool: PoolConfig, seat: Seat, config: Config) -> None:
        """Called on a thread."""
        try:
            background = Background(partial(start, config), partial(self._soon, self._ears.broken))
        except ConfigError as error:
            raise self.config.deploy.wrong_of(pool.name, error) from None
        self._engines.append(background)
        seat.engine = background
        ours, theirs = Local.pair()
        Station(config, background, theirs, Faults(), lambda: None)
        self._soon(self._join, seat.name, ours)

    # -- edges -------------------------------------------------------------------------------------------------------

    def _join(self, name: str, link: Connector) -> None:
        seat = next((seat for seat in self._all if seat.name == name), None)
        if seat is None or seat.link is not None:
            link.end()  # it knows the key, and is nobody that is awaited
            return
        seat.link = link
        link.start(partial(self._soon, self._hear, seat, link), partial(self._soon, self._lose, seat, link))
        self._share(seat)
        self._ears.joined(seat)
        self._tell()

    def _share(self, seat: Seat) -> None:
        """Tell a seat of this machine what it has of that beside the others, once it is known what all of them hold:
        before it hears of any request, then, as all are awaited at the start, and what is started anew is known.
        """
        here = [each for each in self._all if not self.config.deploy.pools[each.pool].elsewhere]
        held = [each.held for each in here if each.engine is None]
        if seat.link is None or seat not in here or not all(held):
            return
        alike = [each.ranks if each.device == "cpu" else 1 for each in here if each.device == seat.device]
        own = resident()  # with all that are in this process
        beside = sum(held) + (0 if seat.engine is not None else own - seat.held // seat.ranks)
        seat.link.send(Share("", beside, sum(alike)))

    def _soon(self, work: Callable[..., None], *given: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work, *given)

    def _hear(self, seat: Seat, link: Connector, frame: AnyFrame, blob: Blob | None) -> None:
        if seat.link is link:
            self._ears.frame(seat, frame, blob)

    def _lose(self, seat: Seat, link: Connector) -> None:
        if seat.link is link:
            seat.link = None
            self._ears.lost(seat)

    def _tell(self) -> None:
        async def notify() -> None:
            async with self._news:
                self._news.notify_all()

        self._told = self._loop.create_task(notify())
