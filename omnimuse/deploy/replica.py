"""One supervised worker: `Life` is one set of processes with one socket, `Replica` starts lives one after the other.

Used by `deploy/pool.py`, on its event loop. A life ends when any of its processes ends, when its engine stands still
while it has work, or when it says nothing for long; then all of its processes are killed, and the requests in it are
lost to those who wait for them. No torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostbyname
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import zmq
import zmq.asyncio

from omnimuse.core import errors
from omnimuse.core.config import Config
from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.core.spec import Spec
from omnimuse.deploy.attempt import Attempt, Lost
from omnimuse.deploy.carry import lay
from omnimuse.deploy.child import EdgeSettings, Settings
from omnimuse.deploy.launch import Launcher, Local, Started, free_port
from omnimuse.deploy.line import listen
from omnimuse.deploy.process import COMMAND
from omnimuse.deploy.scale import Scale
from omnimuse.deploy.wire import (
    MAX_MESSAGE,
    Answer,
    Beat,
    Cancel,
    Carried,
    Ended,
    Finished,
    Form,
    Message,
    NotStarted,
    Profile,
    Profiled,
    Ready,
    Report,
    Sleep,
    Slept,
    Stop,
    Submit,
    Told,
    TriedOn,
    TryOn,
    Update,
    encode,
    error_of,
    of_ended,
    pack,
    read_report,
)
from omnimuse.worker.pace import Shared
from omnimuse.worker.warm_up import SMALL

logger = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between beats
SILENCE = 30.0  # seconds without a beat after which a worker counts as dead
LOADING = 6  # times both limits that hold while it loads: large libraries and weights come in one call
LATE = 5.0  # seconds by which this process must have been held up to distrust its own clock
LINGER = 0.1  # seconds in which the last messages of a process that ended arrive
FIRST_PAUSE, LONGEST_PAUSE, GROWN_UP = 0.1, 10.0, 60.0  # seconds: pauses between lives, and a life long enough
WRITING = 120.0  # seconds that writing a recording may take
MOST_STILLBORN = 5  # lives in a row that never became ready
MOST_UNREAD = 256  # updates kept for somebody who does not read them
FILE = "file://"  # how the name of a meeting place begins that is a file
LEVELS = MappingProxyType({"info": logging.INFO, "warning": logging.WARNING})

A = TypeVar("A", Profiled, Slept, TriedOn)
State = Literal["starting", "ready", "restarting", "broken"]
Cause = Literal["exit", "hang", "silence", "start"]


class End(NamedTuple):
    """How a life ended: a word for those who count, and a sentence for those who read."""

    cause: Cause
    reason: str


@dataclass(frozen=True)
class PoolPlan:
    """What the workers hold and where they write.

    `scale` says how many there are. `hang` is how many seconds an engine with work may stand still, `faults` what
    `deploy/faults.py` reads. `restarted` is called with the cause whenever a worker is replaced, `retried` with how
    many forwards failed and were tried again, `staffed` with how many workers are ready, and coming, when that may have
    changed, `lost` with how many processes more of a pool of the model were replaced. `warm_up` is what a worker draws
    before it is ready (`worker/warm_up.py`). `command` starts a worker; tests have one without a model. Processes of a
    pool (`deploy/pools.py`) have an `edge`, and begin at a `seat`: not every pool has as many ranks.
    """

    config: Config
    spec: Spec
    spool: Path
    scale: Scale = Scale()
    hang: float = 300.0
    faults: str = ""
    restarted: Callable[[Cause], None] = lambda cause: None
    retried: Callable[[int], None] = lambda forwards: None
    staffed: Callable[[int, int], None] = lambda ready, coming: None
    lost: Callable[[str, int], None] = lambda pool, processes: None
    warm_up: str = SMALL
    command: tuple[str, ...] = COMMAND
    edge: EdgeSettings | None = None
    seat: int | None = None


class Life:
    """The processes of one worker from their start to their end, and the socket to the first of them."""

    def __init__(self, settings: Settings, plan: PoolPlan, hear: Callable[[Report], None], launcher: Launcher) -> None:
        self.settings = settings
        self.memory = 0
        self.ready = False
        self.ended = False
        self._plan = plan
        self._hear = hear
        self._launcher = launcher
        self._away = bool(launcher.meeting) and settings.ranks == 1
        self._killed = asyncio.Event()
        self._ranks: list[Started] = []
        self._socket: zmq.asyncio.Socket | None = None
        self._ticks, self._heard, self._moved = 0, time.monotonic(), time.monotonic()

    @property
    def pid(self) -> int | None:
        """The process that holds the engine."""
        return self._ranks[0].pid if self._ranks else None

    def send(self, message: Message) -> None:
        """Send `message` when the worker has connected."""
        if self._socket is not None:
            self._socket.send(encode(message))

    async def live(self, context: zmq.asyncio.Context) -> End:
        """Start, and return when all processes have ended: what ended this life."""
        socket = self._socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        address, key = listen(socket, self.settings.address, secret=self._away)
        self.settings = msgspec.structs.replace(self.settings, address=address, key=key)
        tasks: list[asyncio.Task[End]] = []
        try:
            for number in range(self.settings.ranks):
                launcher = self._launcher if number or self._away else Local(self._plan.command)
                seat = self.settings.seat + number
                await self._start(launcher, msgspec.structs.replace(self.settings, rank=number, seat=seat))
            tasks = [asyncio.create_task(work) for work in (self._listen(socket), self._watch())]
            tasks += [asyncio.create_task(self._wait(number, rank)) for number, rank in enumerate(self._ranks)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.ended = True
            await asyncio.sleep(LINGER)
            return next(task.result() for task in tasks if task in done)
        finally:
            self.kill()
            for rank in self._ranks:
                await rank.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._socket = None
            socket.close()
            if self.settings.meeting.startswith(FILE):
                Path(self.settings.meeting.removeprefix(FILE)).unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill what is left of its processes, and theirs."""
        self._killed.set()
        for rank in self._ranks:
            rank.kill()

    async def _start(self, launcher: Launcher, settings: Settings) -> None:
        """Have a rank started, unless this life is killed before there is a place for it."""
        start, killed = asyncio.ensure_future(launcher.start(settings)), asyncio.ensure_future(self._killed.wait())
        try:
            await asyncio.wait((start, killed), return_when=asyncio.FIRST_COMPLETED)
            if not start.done():
                raise OSError("it was killed before all its ranks had a place")
            self._ranks.append(start.result())
        finally:
            start.cancel()
            killed.cancel()

    async def _wait(self, number: int, rank: Started) -> End:
        ended = await rank.wait()
        who = "its process" if self.settings.ranks == 1 else f"its rank {number}"
        return End("exit" if self.ready else "start", f"{who} {ended}")

    async def _listen(self, socket: zmq.asyncio.Socket) -> End:
        while True:
            for payload in await socket.recv_multipart():
                try:
                    report = read_report(payload)
                except errors.EngineDeadError as error:
                    return End("exit", str(error))
                await self._take(report)

    async def _take(self, report: Report | Carried) -> None:
        if isinstance(report, Beat):
            self._feel(report)
        if isinstance(report, Carried):
            if (trouble := await asyncio.to_thread(lay, self._plan.spool, report)) is not None:
                self._hear(trouble)
            return
        self.ready = self.ready or isinstance(report, Ready)
        self._hear(report)

    def _feel(self, beat: Beat) -> None:
        self._heard, self.memory = time.monotonic(), beat.memory
        if beat.ticks != self._ticks or not beat.busy:
            self._ticks, self._moved = beat.ticks, self._heard

    async def _watch(self) -> End:
        before = time.monotonic()
        while True:
            await asyncio.sleep(PERIOD)
            now = time.monotonic()
            if now - before > PERIOD + LATE:  # this process was held up: what the worker said is still unread
                self._heard = self._moved = now
            before = now
            patience = 1 if self.ready else LOADING
            limit, silence = self._plan.hang * patience, SILENCE * patience
            if now - self._moved > limit:
                return End("hang", f"its engine stood still for {limit:g} s")
            if now - self._heard > silence:
                return End("silence", f"it said nothing for {silence:g} s")


class Replica:
    """A worker that is started again whenever it ends, until it is closed or proves unable to start.

    `holder` is the request for which it is kept free of others. `changed` is called when there may be room here, or no
    hope of any.
    """

    def __init__(
        self, index: int, plan: PoolPlan, folder: Path, changed: Callable[[], None], launcher: Launcher
    ) -> None:
        self.index, self.plan = index, plan
        self.name = f"worker {index}" if plan.edge is None else f"pool {plan.edge.name}"
        self.state: State = "starting"
        self.place: dict[str, str] = {}
        self.weights: dict[str, tuple[int, int]] = {}
        self.company: list[Shared] = []
        self.away, self.adapters = list[str](), (0, 0)
        self.running: dict[str, Attempt] = {}
        self.holder: str | None = None
        self.restarts, self.held = 0, 0
        self.reason = ""
        self.refusal: Exception | None = None
        self._folder, self._launcher, self._changed = folder, launcher, changed
        self._life: Life | None = None
        self._told, self._retries = "", 0
        self.asleep = False
        self._lost: dict[str, int] = {}
        self._asked: dict[type[Answer], asyncio.Future[Any]] = {}
        self._closing = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process that holds the engine, if there is one."""
        return self._life.pid if self._life else None

    @property
    def memory(self) -> int:
        """Resident memory of that process in bytes."""
        return self._life.memory if self._life else 0

    @property
    def open(self) -> bool:
        """Whether it can take a request now."""
        alive = self._life is not None and not self._life.ended
        return self.state == "ready" and alive and not self._closing.is_set()

    @property
    def load(self) -> int:
        """How many requests are in it."""
        return len(self.running)

    @property
    def waiting(self) -> list[Attempt]:
        """What has not begun here, the last to come last."""
        return [attempt for attempt in self.running.values() if not attempt.begun and not attempt.abandoned]

    def take(self, request: Request, form: Form, since: float) -> Attempt:
        """Start work on `request`, which waits `since` it came; only when open."""
        assert self.open and self._life is not None
        attempt = self.running[request.id] = Attempt(request, since)
        self._life.send(Submit(pack(request), form))
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """Nobody waits for `attempt` any more: stop it if it has not ended, remove files that nobody took."""
        if self.running.get(attempt.request.id) is attempt:
            attempt.abandoned = True
            if self._life is not None:
                self._life.send(Cancel(attempt.request.id))
        while not attempt.updates.empty():
            self._remove(attempt.updates.get_nowait())

    async def profile(self, seconds: float, requests: int = 0) -> Path:
        """Where a recording of `seconds` of its work is, or of the next `requests`; the caller's to remove.

        CapacityError while another is made, ConfigError where none can be, EngineDeadError when the worker is not there
        or could not make this one.
        """
        asked = self._ask(Profile(seconds, requests), Profiled, "is being recorded already")
        made = await self._answer(asked, seconds + WRITING)
        if made.trouble:
            raise error_of(made.kind, f"worker {self.index} could not be recorded: {made.trouble}")
        return self.plan.spool / made.name

    async def sleep(self, asleep: bool) -> int:
        """Have its weights leave memory, or come back; how many bytes left. A worker that starts anew is as asked here.

        CapacityError while it is under way, ConfigError where it cannot be, EngineDeadError without a worker.
        """
        asked = self._ask(Sleep(asleep), Slept, "is falling asleep or waking up")
        before, self.asleep = self.asleep, asleep
        told = await self._answer(asked, WRITING)
        if told.trouble:
            self.asleep = before
            raise errors.ConfigError(f"worker {self.index}: {told.trouble}")
        return told.bytes

    async def try_on(self, loras: Sequence[Lora]) -> None:
        """Have it read what requests are to wear; what speaks against it is raised.

        CapacityError while it reads others, EngineDeadError without a worker.
        """
        asked = self._ask(TryOn(list(loras)), TriedOn, "is reading adapters already")
        if (trouble := (await self._answer(asked, WRITING)).trouble) is not None:
            raise of_ended(trouble)

    def _ask(self, command: Message, kind: type[A], busy: str) -> asyncio.Future[A]:
        """Give the worker an operator's command, which is answered by that `kind`."""
        if not self.open or self._life is None:
            raise errors.EngineDeadError(f"worker {self.index} is not ready; try again in a moment")
        if kind in self._asked:  # also if nobody waits for that any more
            raise errors.CapacityError(f"worker {self.index} {busy}; try again later")
        asked: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked[kind] = asked
        self._life.send(command)
        return asked

    async def _answer(self, asked: asyncio.Future[A], patience: float) -> A:
        try:
            return await asyncio.wait_for(asked, patience)
        except TimeoutError:
            raise errors.EngineDeadError(
                f"worker {self.index} did not answer within {patience:g} s; try again later"
            ) from None

    async def supervise(self, context: zmq.asyncio.Context) -> None:
        """Start lives until closed or broken; returns then."""
        pause, stillborn, number = FIRST_PAUSE, 0, 0
        while not self._closing.is_set():
            number += 1
            life = self._life = self._new_life(number)
            began = time.monotonic()
            try:
                end = await life.live(context)
            except OSError as error:  # no room for another process or socket
                end = End("start", f"it could not be started: {error.strerror or error}")
            self.reason, self._told = self._told or end.reason, ""
            self._life = None
            self._lose(life)
            stillborn = 0 if life.ready else stillborn + 1
            pause = FIRST_PAUSE if life.ready and time.monotonic() - began > GROWN_UP else pause
            if self._closing.is_set():
                break
            if self.refusal is not None or stillborn >= MOST_STILLBORN:
                self.state = "broken"
                self._changed()
                logger.error("%s cannot be started: %s", self.name, self.refusal or self.reason)
                return
            self.state, self.restarts = "restarting", self.restarts + 1
            self.plan.restarted(end.cause)
            logger.warning("%s is started again in %.1f s: %s", self.name, pause, self.reason)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Ask the worker to end; `supervise` returns when it has."""
        self._closing.set()
        if self._life is not None:
            self._life.send(Stop())

    def kill(self) -> None:
        """End the worker now."""
        if self._life is not None:
            self._life.kill()

    def _new_life(self, number: int) -> Life:
        name, plan, meeting = f"{self.index}-{number}", self.plan, self._launcher.meeting
        ranks = plan.config.parallel.ranks
        here = 1 if meeting else ranks  # of a group, on the front's machine
        settings = Settings(
            config=plan.config,
            address=f"tcp://{gethostbyname(meeting)}:*"
            if meeting and ranks == 1
            else f"ipc://{self._folder}/{name}.sock",
            spool=plan.spool,
            name=name,
            seat=self.index * here if plan.seat is None else plan.seat,
            seats=plan.scale.most * here,
            ranks=ranks,
            meeting=f"tcp://{meeting}:{free_port(meeting)}" if meeting else f"{FILE}{self._folder}/{name}.meet",
            faults=plan.faults,
            first=(self.index, number) == (0, 1),
            period=PERIOD,
            warm_up=plan.warm_up,
            edge=plan.edge,
        )
        return Life(settings, plan, self._hear, self._launcher)

    def _hear(self, report: Report) -> None:
        match report:
            case Beat():
                self._count(report)
            case Ready():
                self.state, self.place, self.weights, self.held = "ready", report.place, report.weights, report.held
                logger.info("%s is ready after %.1f s", self.name, report.seconds)
                if self.asleep and self._life is not None:  # the one before it slept
                    self._life.send(Sleep(True))
                self._changed()
            case Told():
                logger.log(LEVELS[report.level], "%s: %s", self.name, report.text)
            case Profiled() | Slept() | TriedOn():
                self._answered(report)
            case NotStarted():
                self._told = report.message
                if report.kind and not self.place:  # what has worked before may work again
                    self.refusal = error_of(report.kind, report.message)
            case _:
                self._deliver(report)

    def _count(self, beat: Beat) -> None:
        """What grew since the last one; in another life all begins at none again."""
        if beat.retries > self._retries:
            self.plan.retried(beat.retries - self._retries)
        for pool, count in beat.lost.items():
            known = self._lost.get(pool, 0)
            self.plan.lost(pool, count - known if count >= known else count)
        self._retries, self._lost = beat.retries, beat.lost
        self.company, self.away, self.adapters = beat.company, beat.away, beat.adapters

    def _deliver(self, report: Update | Ended) -> None:
        ends = isinstance(report, Finished | Ended)
        attempt = self.running.pop(report.request_id, None) if ends else self.running.get(report.request_id)
        if ends:
            self._changed()
        elif attempt is not None:
            attempt.begun = True
        if attempt is None or attempt.abandoned:
            self._remove(report)
        elif ends or attempt.updates.qsize() < MOST_UNREAD:
            attempt.updates.put_nowait(of_ended(report) if isinstance(report, Ended) else report)

    def _answered(self, answer: Answer) -> None:
        asked = self._asked.pop(type(answer), None)
        if asked is not None and not asked.done():
            asked.set_result(answer)
        elif isinstance(answer, Profiled) and answer.name:  # whoever wanted it has gone
            (self.plan.spool / answer.name).unlink(missing_ok=True)

    def _lose(self, life: Life) -> None:
        """Tell those who wait, and remove what the life has left of their files."""
        why = f"{self.reason}; try again in a moment"
        gone = Ended("", errors.EngineDeadError.__name__, f"worker {self.index}: {why}")
        for name in (*self.running, "?profile"):  # of recordings what is before their names: those are whole, and told
            for path in self.plan.spool.glob(f"*{name}-{life.settings.name}-*"):
                path.unlink(missing_ok=True)
        for answer in (Profiled("", why), Slept(0, why), TriedOn(gone)):
            self._answered(answer)
        lost, self.running, self.adapters = self.running, {}, (0, 0)
        for attempt in lost.values():
            if not attempt.abandoned:
                attempt.updates.put_nowait(Lost(self.reason))

    def _remove(self, report: object) -> None:
        for file in report.files if isinstance(report, Finished) else ():
            (self.plan.spool / file.name).unlink(missing_ok=True)
