"""How the threads of one engine wait for each other: awake while the cores are theirs, asleep while others want them.

OpenMP's threads meet after every operation. libgomp lets the first one there spin, which is quickest on cores of one's
own; but where another process has one of the cores, the thread that is waited for waits itself, and a whole slice of
time is spun away at a meeting. libgomp does not spin when there are more OpenMP threads than cores (GOMP_SPINCOUNT in
its manual): the governor keeps a few idle ones while it is crowded. Where one thread fewer changes no bit of a result
(`worker/crew.py`), a forward does with one fewer then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Thread
from typing import Protocol

import torch

from omnimuse.core.config import Choice
from omnimuse.core.machine import cores, idle, waited

logger = logging.getLogger(__name__)

LOOK = 0.08  # seconds of work between looks, which take about half a millisecond
CROWDED = 0.3  # seconds that threads waited for a core, in a second of work: above it they sleep at meetings
PATIENCE, LONGEST = 2.0, 32.0  # seconds of work asleep before they try it awake; twice as long each time it is too soon
FREE = 0.3  # seconds in a second that cores have nothing to do: the neighbour has gone, and they try it `EARLY`
EARLY = 0.25
GONE = 0.8  # nothing else is at work for certain, and their first patience is enough
LONG_LOOK, LEFT_WAITING = 0.4, 0.2  # seconds of forwards, and of waiting in a second: one thread fewer is no help
IN_VAIN = 16.0  # seconds of work for which it is not tried again then, unless the crowd goes
WATCHED = "watched"
GRAIN = 32768  # numbers that torch gives to one thread at least


class Idlers(Protocol):
    """Something that keeps threads from spinning while it is held."""

    def hold(self) -> None:
        """Begin."""

    def release(self) -> None:
        """End; also when it was not held."""


class Spares(Protocol):
    """What can do with one thread fewer while the network computes (`worker/crew.py`)."""

    spared: bool
    seconds: float
    waiting: float

    def spare(self) -> None:
        """From now on, and count `seconds` with one thread fewer, and of those `waiting` for a core, from zero."""

    def recall(self) -> None:
        """Not any more, and count nothing."""


@dataclass(frozen=True)
class Signs:
    """What the governor sees: seconds up to now for which all threads of this process together were ready and had no
    core, and for which this process's cores had nothing to do; and a clock.
    """

    waited: Callable[[], float] = lambda: waited() or 0.0
    idle: Callable[[], float] = idle
    clock: Callable[[], float] = time.perf_counter


class Governor:
    """Watches how long threads wait for a core, and holds `idlers` while they wait too long.

    Asleep, threads that wake each other on one core wait for it, too, so that a crowd cannot be seen: from time to time
    they try it awake, and soon where a core has nothing to do by then. Where there is a `crew`, it spares a thread
    while they sleep, unless those that are left wait as well: two threads have more of crowded cores than one.
    One thread drives it.
    """

    def __init__(self, idlers: Idlers, crew: Spares | None, signs: Signs | None = None) -> None:
        self.asleep = False
        self.crew = crew
        self._idlers, self._signs = idlers, signs or Signs()
        self._before = self._signs.waited()
        self._free = 0.0  # seconds that cores had nothing to do, since the last look
        self._unseen = 0.0  # seconds of work since the last look
        self._spent = float("inf")  # seconds of work since the last turn
        self._patience = PATIENCE
        self._vain = float("inf")  # seconds of work since one thread fewer was no help

    def watch(self, work: Callable[[], None]) -> None:
        """Do `work`, and look at how it went."""
        signs, asleep = self._signs, self.asleep
        free, began = signs.idle() if asleep else 0.0, signs.clock()
        work()
        self._unseen += signs.clock() - began
        self._free += signs.idle() - free if asleep else 0.0
        if self._unseen >= LOOK:
            now, seconds = signs.waited(), self._unseen
            self._judge((now - self._before) / seconds, self._free / seconds, seconds)
            self._before, self._unseen, self._free = now, 0.0, 0.0

    def close(self) -> None:
        """Let the idle threads go."""
        self._idlers.release()

    def _judge(self, share: float, free: float, seconds: float) -> None:
        self._spent += seconds
        self._vain += seconds
        if not self.asleep:
            if share > CROWDED:
                too_soon = self._spent < self._patience
                self._patience = min(2 * self._patience, LONGEST) if too_soon else PATIENCE
                self._turn(True, f"since others want the cores (threads waited {share:.2f} s in a second)")
            else:
                self._vain = float("inf")
        elif self._spent >= self._patience_while(free):
            self._turn(False, "to see whether the cores are free")
        elif self.crew is not None and self.crew.seconds >= LONG_LOOK:
            self._look_back(self.crew)

    def _patience_while(self, free: float) -> float:
        """Seconds of work asleep before they try it awake, where cores had nothing to do for so much of a second."""
        early = EARLY * self._patience
        if free > GONE:
            return min(early, PATIENCE)
        return early if free > FREE else self._patience

    def _look_back(self, crew: Spares) -> None:
        """Take the thread back that `crew` has spared if those that are left had to wait as well."""
        waiting = crew.waiting / crew.seconds
        if waiting > LEFT_WAITING:
            crew.recall()
            self._vain = 0.0
            logger.info("forwards have all threads again, since fewer wait, too (%.2f s in a second)", waiting)
        else:
            crew.spare()

    def _turn(self, asleep: bool, why: str) -> None:
        self.asleep, self._spent = asleep, 0.0
        (self._idlers.hold if asleep else self._idlers.release)()
        logger.info("threads wait for each other %s, %s", "asleep" if asleep else "awake", why)
        if self.crew is not None:
            (self.crew.spare if asleep and self._vain >= IN_VAIN else self.crew.recall)()
            logger.info("forwards have %s", "one thread fewer" if self.crew.spared else "all threads")


class IdleTeams:
    """Idle teams of OpenMP threads, beside the team of `threads` that computes: enough to be more than the cores."""

    def __init__(self, threads: int, there: int) -> None:
        self._threads = threads
        self._count = max(1, -(-(there - threads + 1) // (threads - 1)))  # every team has one thread of its own already
        self._held: list[Thread] = []
        self._release = Event()

    def hold(self) -> None:
        """Start the teams; they do nothing until `release`."""
        if self._held:
            return
        self._release.clear()
        started = [Event() for _ in range(self._count)]
        for event in started:
            self._held.append(Thread(target=self._idle, args=(event,), name="omnimuse-idle", daemon=True))
            self._held[-1].start()
        for event in started:
            event.wait()

    def release(self) -> None:
        """Have the teams end: their threads go a moment later, and until then those that compute sleep."""
        self._release.set()
        for thread in self._held:
            thread.join()
        self._held.clear()

    def _idle(self, started: Event) -> None:
        torch.zeros(GRAIN * self._threads).add_(1)  # large enough for every thread: now the team is there
        started.set()
        self._release.wait()


def choose_waiting(device: torch.device, threads: int, policy: str) -> Choice:
    """How threads wait for each other: watched wherever it can be, unless OMP_WAIT_POLICY is a `policy` of somebody."""
    name = "threads wait"
    if device.type != "cpu" or threads == 1:
        return Choice("place", name, "unwatched", "nothing here waits for threads of the processor")
    if policy:
        return Choice("place", name, policy, "OMP_WAIT_POLICY says so")
    if waited() is None:
        return Choice("place", name, "unwatched", "this system does not tell how long threads wait for a core")
    return Choice("place", name, WATCHED, "awake; asleep while others want the cores, too")


def govern(choice: Choice, threads: int, crew: Spares | None = None) -> Governor | None:
    """The governor that `choice` asks for, if it does."""
    return Governor(IdleTeams(threads, cores()), crew) if choice.value == WATCHED else None
