"""The workers behind one front process: who draws which request, and what happens to it when a worker dies.

The server's routes and jobs call `Pool.run`. A request that loses its worker is tried once more, alone on a worker, so
that a second death shows who is to blame. There are more workers while requests wait, and fewer when some are idle for
long (`deploy/scale.py`). No torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import zmq.asyncio

from omnimuse.core.errors import (
    ConfigError,
    DeadlineError,
    EngineClosedError,
    EngineDeadError,
    ModelError,
    PoisonError,
    WorkerLostError,
)
from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.deploy.attempt import Attempt, Lost, Moved
from omnimuse.deploy.folder import PrivateFolder
from omnimuse.deploy.launch import Launcher, Local
from omnimuse.deploy.launchers import opened
from omnimuse.deploy.replica import PoolPlan, Replica, State
from omnimuse.deploy.routing import least_loaded
from omnimuse.deploy.scale import GRACE, LOOK, Scaler, Seen, to_move
from omnimuse.deploy.wire import Finished, Form, Update, added
from omnimuse.worker.pace import Shared

__all__ = ["Pool", "PoolPlan", "ReplicaStatus"]

logger = logging.getLogger(__name__)

OVERTIME = 1.0  # seconds past its deadline in which the engine itself says that a request is late
LAST = 2.0  # seconds in which killed processes are gone
COMING = ("starting", "restarting")


@dataclass(frozen=True)
class ReplicaStatus:
    """How one worker is: requests in it, resident bytes of its first process, and why it was last started again."""

    index: int
    state: State
    pid: int | None
    restarts: int
    running: int
    memory: int
    reason: str


class Pool:
    """Implements `server.workers.Workers` with real processes; lives on one event loop.

    `folder` holds the sockets while there are any.
    """

    def __init__(self, plan: PoolPlan) -> None:
        self.plan = plan
        self.folder: PrivateFolder | None = None
        self.launcher: Launcher = Local(plan.command)
        self._replicas: list[Replica] = []
        self._lives: dict[Replica, asyncio.Task[None]] = {}  # of those that are sent away, too, until they have ended
        self._scaler = Scaler(plan.scale)
        self._scaling: asyncio.Task[None] | None = None
        self._waiting: dict[str, float] = {}
        self._context: zmq.asyncio.Context | None = None
        self._news = asyncio.Event()
        self._draw = Random()
        self._closed = False

    async def start(self) -> None:
        """Start the workers; returns at once, see `wait_ready`. ConfigError where their ranks cannot be launched."""
        if not any(pool.elsewhere for pool in self.plan.config.deploy.pools):  # else the worker starts what is
            self.launcher = await opened(self.plan.config, self.plan.command)
        self.folder = PrivateFolder()
        self._context = zmq.asyncio.Context()
        self._hire(self.plan.scale.least)
        if self.plan.scale.moves:
            self._scaling = asyncio.create_task(self._scale())
            self._scaling.add_done_callback(_tell_failure)

    async def wait_ready(self) -> None:
        """Return when a worker is ready; the ModelError or ConfigError for which none can be, or EngineDeadError.

        EngineClosedError if `close` comes first.
        """
        while not self.ready:
            self._refuse_if_hopeless()
            await self._news.wait()

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a request now."""
        return any(replica.open for replica in self._replicas)

    @property
    def broken(self) -> str:
        """Why no worker will ever be ready; empty while there is hope."""
        for life in self._lives.values():
            if life.done() and not life.cancelled() and (error := life.exception()) is not None:
                return f"a worker is no longer looked after: {error}"
        if not self._replicas or any(replica.state != "broken" for replica in self._replicas):
            return ""
        return next(str(replica.refusal or replica.reason) for replica in self._replicas)

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device the workers compute with; empty until one is ready."""
        return next((replica.place for replica in self._replicas if replica.place), {})

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """What the components of a worker take, as `Ready` has it; empty until one is ready."""
        return next((replica.weights for replica in self._replicas if replica.weights), {})

    @property
    def company(self) -> list[Shared]:
        """What shared forwards of a worker took, of their time apart; empty until some were measured."""
        return next((replica.company for replica in self._replicas if replica.company), [])

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, in all workers, and of those that nobody wears."""
        return added(replica.adapters for replica in self._replicas)

    @property
    def away(self) -> list[str]:
        """Pools of the model of which no worker has a process that can take a request now."""
        found = [replica.away for replica in self._replicas if replica.state == "ready"]
        return [name for name in found[0] if all(name in each for each in found)] if found else []

    def status(self) -> list[ReplicaStatus]:
        """How every worker is."""
        return [
            ReplicaStatus(r.index, r.state, r.pid, r.restarts, len(r.running), r.memory, r.reason)
            for r in self._replicas
        ]

    async def profile(self, index: int, seconds: float, requests: int = 0) -> Path:
        """Where a recording of a worker's work is (`Replica.profile`); ConfigError without that worker."""
        replica = next((each for each in self._replicas if each.index == index), None)
        if replica is None:
            raise ConfigError(f"there is no worker {index}; the last one is {self._replicas[-1].index}")
        return await replica.profile(seconds, requests)

    @property
    def asleep(self) -> bool:
        """Whether the weights of every worker are away, and requests wait."""
        return bool(self._replicas) and all(replica.asleep for replica in self._replicas)

    async def sleep(self, asleep: bool) -> int:
        """Have the weights of every worker leave memory, or come back; how many bytes left (`Replica.sleep`)."""
        return sum(await asyncio.gather(*(replica.sleep(asleep) for replica in self._replicas)))

    async def try_on(self, loras: Sequence[Lora]) -> None:
        """Have every worker that is there read what requests are to wear; what any cannot wear is raised."""
        there = [replica for replica in self._replicas if replica.open]
        if not there:
            raise EngineDeadError("no worker is ready; try again in a moment")
        for wrong in await asyncio.gather(*(replica.try_on(loras) for replica in there), return_exceptions=True):
            if wrong is not None:
                raise wrong

    async def run(self, request: Request, form: Form) -> AsyncIterator[Update]:
        """The updates of one request, the last of which is Finished; errors are raised. After a retry steps restart.

        Leaving the iterator early cancels the request at its next step. The files of Finished are the caller's.
        """
        kills, since = 0, time.monotonic()
        waited, asked = 0.0, since
        try:
            while True:
                replica, attempt = await self._place(request, form, since, alone=kills > 0)
                placed = time.monotonic()
                left: Lost | Moved | None = None
                late = _late(attempt)
                try:
                    while left is None:
                        update = await attempt.updates.get()
                        if isinstance(update, Lost | Moved):
                            left = update
                        elif isinstance(update, Exception):
                            raise update
                        elif isinstance(update, Finished):
                            yield update.after(waited + placed - asked)
                            return
                        else:
                            yield update
                finally:
                    if late is not None:
                        late.cancel()
                    replica.leave(attempt)
                if isinstance(left, Lost):
                    self._refuse_retry(request, kills, left)
                    kills += 1
                    waited, asked = waited + placed - asked, time.monotonic()
        finally:
            self._release(request)

    def missed(self) -> None:
        """A request was refused that more workers would have served."""
        self._scaler.missed(time.monotonic())

    async def close(self, grace: float) -> None:
        """End the workers within `grace` seconds, else kill them; requests in them fail. Leaves nothing behind."""
        self._closed = True
        self._tell()
        if self._scaling is not None:
            self._scaling.cancel()
            await asyncio.gather(self._scaling, return_exceptions=True)
        lives = dict(self._lives)
        for replica in lives:
            replica.close()
        if lives and grace > 0:
            await asyncio.wait(lives.values(), timeout=grace)
        while not all(life.done() for life in lives.values()):
            for replica in lives:
                replica.kill()
            await asyncio.wait(lives.values(), timeout=LAST)
        await asyncio.gather(*lives.values())
        await self.launcher.close()
        if self._context is not None:
            self._context.destroy(linger=0)
        if self.folder is not None:
            self.folder.close()
            self.folder = None

    async def _place(self, request: Request, form: Form, since: float, alone: bool) -> tuple[Replica, Attempt]:
        """Wait for room on a worker, until the deadline; `alone` waits for one without other work."""
        self._waiting[request.id] = since
        try:
            async with asyncio.timeout(_left(request)):
                while True:
                    self._refuse_if_hopeless(once_started=True)
                    replica = self._choose_alone(request) if alone else self._choose()
                    if replica is not None:
                        return replica, self._take(replica, request, form)
                    await self._news.wait()
        except TimeoutError:
            raise DeadlineError("the deadline of the request passed before a worker was free") from None
        finally:
            self._waiting.pop(request.id, None)

    def _take(self, replica: Replica, request: Request, form: Form) -> Attempt:
        attempt = replica.take(request, form, self._waiting[request.id])
        if all(each.load for each in self._replicas if each.open):
            self._scaler.busy()
        return attempt

    def _choose(self) -> Replica | None:
        return least_loaded(self._replicas, self._draw)

    def _choose_alone(self, request: Request) -> Replica | None:
        """The worker that is kept for `request`, once it is ready and empty; no other request may join it there."""
        held = next((r for r in self._replicas if r.holder == request.id and r.state != "broken"), None)
        if held is None:
            free = [r for r in self._replicas if r.state != "broken" and r.holder is None]
            held = min(free, key=lambda replica: len(replica.running), default=None)
        if held is None:
            return None
        held.holder = request.id
        return held if held.open and not held.running else None

    def _release(self, request: Request) -> None:
        for replica in self._replicas:
            if replica.holder == request.id:
                replica.holder = None
                self._tell()

    def _refuse_retry(self, request: Request, kills: int, lost: Lost | None) -> None:
        if self._closed:
            raise EngineClosedError("the workers are being closed; try again in a moment")
        if kills:
            raise PoisonError(
                f"the request ended its worker twice ({lost}); ask for another size, or fewer outputs or steps"
            )
        if request.deadline is not None and request.deadline <= time.monotonic():
            raise WorkerLostError(f"the worker of the request was lost ({lost}) and its deadline has passed; ask again")

    def _refuse_if_hopeless(self, once_started: bool = False) -> None:
        if self._closed:
            raise EngineClosedError("the workers are being closed; try again in a moment")
        for life in self._lives.values():
            if life.done():
                life.result()  # a fault in the supervision is not waited for
        reason = self.broken if self._replicas else "the pool was not started"
        if not reason:
            return
        refusal = next((replica.refusal for replica in self._replicas if replica.refusal), None)
        if isinstance(refusal, ModelError | ConfigError) and not once_started:
            raise refusal
        raise EngineDeadError(f"no worker can be started ({reason}); mend that, and start the server again")

    def _tell(self) -> None:
        """Wake everybody who waits for a change, once."""
        ready = sum(replica.open for replica in self._replicas)
        self.plan.staffed(ready, sum(replica.state in COMING for replica in self._replicas))
        self._news.set()
        self._news = asyncio.Event()

    # -- more of them, and fewer -----------------------------------------------------------------------------------

    async def _scale(self) -> None:
        """Keep as many workers as there should be, and their work even."""
        while True:
            await asyncio.sleep(LOOK)
            if self.asleep:
                continue
            self._give_up_broken()
            now, before = time.monotonic(), len(self._replicas)
            wanted = self._scaler.wanted(now, self._seen())
            if wanted > before:
                logger.info("requests wait: %d worker(s) are added to the %d", wanted - before, before)
                self._hire(wanted)
            elif wanted < before:
                self._dismiss()
            for attempt in to_move(self._replicas, lambda replica: replica.waiting):
                attempt.updates.put_nowait(Moved())

    def _seen(self) -> Seen:
        waiting = [attempt.since for replica in self._replicas for attempt in replica.waiting]
        idle = sum(replica.open and not replica.load for replica in self._replicas)
        coming = sum(replica.state in COMING for replica in self._replicas)
        return Seen(len(self._replicas), coming, idle, [*waiting, *self._waiting.values()])

    def _hire(self, wanted: int) -> None:
        """Start workers until there are `wanted`; each has the lowest number that is free."""
        assert self.folder is not None and self._context is not None
        while len(self._replicas) < wanted:
            taken = {replica.index for replica in self._lives}
            index = next(number for number in range(len(taken) + 1) if number not in taken)
            replica = Replica(index, self.plan, self.folder.path, self._tell, self.launcher)
            self._replicas.append(replica)
            life = self._lives[replica] = asyncio.create_task(replica.supervise(self._context))
            life.add_done_callback(partial(self._ended, replica))
        self._tell()

    def _dismiss(self) -> None:
        """Send a worker away that is not ready, or else the last one without work."""
        free = [each for each in self._replicas if not each.open or (not each.load and each.holder is None)]
        if not free:
            return
        replica = max(free, key=lambda each: (not each.open, each.index))
        wait = GRACE if replica.open else 0.0
        self._replicas.remove(replica)
        logger.info("worker %d had nothing to do and ends; %d are left", replica.index, len(self._replicas))
        replica.close()
        asyncio.get_running_loop().call_later(wait, replica.kill)
        self._tell()

    def _give_up_broken(self) -> None:
        """Forget workers that were added and cannot be started, while others work."""
        broken = [replica for replica in self._replicas if replica.state == "broken"]
        for replica in broken[: max(0, len(self._replicas) - self.plan.scale.least)]:
            if len(self._replicas) > len(broken):
                self._replicas.remove(replica)
                self._lives.pop(replica, None)
                self._scaler.failed(time.monotonic())

    def _ended(self, replica: Replica, life: asyncio.Task[None]) -> None:
        if replica not in self._replicas and not life.cancelled() and life.exception() is None:
            self._lives.pop(replica, None)
        self._tell()


def _tell_failure(scaling: asyncio.Task[None]) -> None:
    """Log why the number of workers is looked after no longer; those that are there go on."""
    if not scaling.cancelled() and (error := scaling.exception()) is not None:
        logger.error("the number of workers is fixed from now on", exc_info=error)


def _late(attempt: Attempt) -> asyncio.TimerHandle | None:
    """What ends `attempt` some time after its deadline, if it has one; one timer, however many updates come."""
    if (left := _left(attempt.request)) is None:
        return None
    error = DeadlineError("the deadline of the request has passed")
    return asyncio.get_running_loop().call_later(left + OVERTIME, attempt.updates.put_nowait, error)


def _left(request: Request) -> float | None:
    """Seconds to the deadline."""
    return None if request.deadline is None else request.deadline - time.monotonic()
