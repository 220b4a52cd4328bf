"""The engine: takes requests in, decides each tick, drives the runner, hands events out.

`Omni`, `AsyncOmni` and the server's workers use it. `submit`, `cancel`, `pause` and `resume` may be called from any
thread; one thread calls `tick`. On several ranks, rank 0 holds the engine and sends every tick's plan to the others.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from omnimuse.core.errors import DeadlineError, EngineClosedError, RequestCancelled, RequestError
from omnimuse.core.output import Done, Event, Failed
from omnimuse.core.request import Ask, Door, Request
from omnimuse.engine.scheduler import Scheduler
from omnimuse.parallel.collectives import broadcast_bytes
from omnimuse.worker.plan import TickPlan, decode, encode
from omnimuse.worker.runner import Runner


class Engine:
    """One engine over one runner; `clock` gives seconds and is replaced in tests."""

    def __init__(self, runner: Runner, door: Door, clock: Callable[[], float] = time.monotonic) -> None:
        self.runner = runner
        self.door = door
        self.clock = clock
        self.scheduler = Scheduler(runner.config)
        self.mesh = runner.pipeline.ctx.mesh
        self._lock = threading.Lock()
        self._cancelled: dict[str, RequestCancelled] = {}
        self._pause: list[str] = []
        self._resume: list[str] = []
        self._arrived: dict[str, float] = {}
        self._waited: dict[str, float] = {}
        self._closed = False

    # -- from any thread -----------------------------------------------------------------------------------------

    def make_request(self, ask: Ask) -> Request:
        """`ask`, checked and completed; nothing is queued yet."""
        return self.door.make_request(ask, self.clock(), secrets.randbelow(2**32))

    def submit(self, request: Request) -> str:
        """Queue a request and return its id; CapacityError when the queue is full."""
        tokens = self.runner.tokens(request)
        with self._lock:
            self._refuse_if_closed()
            self.scheduler.add(request, tokens)
            self._arrived[request.id] = self.clock()
        return request.id

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step boundary; unknown or finished ids are ignored."""
        with self._lock:
            if request_id in self.scheduler.entries:
                self._cancelled[request_id] = RequestCancelled("the request was cancelled")

    def pause(self, request_id: str) -> None:
        """Hold a request between steps; its state moves to the CPU."""
        self._hold(request_id, True)

    def resume(self, request_id: str) -> None:
        """Let a paused request go on."""
        self._hold(request_id, False)

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that this engine computes with."""
        ctx = self.runner.pipeline.ctx
        return {"dtype": str(ctx.dtype).removeprefix("torch."), "device": str(ctx.device)}

    @property
    def idle(self) -> bool:
        """Whether a tick would have nothing to do."""
        with self._lock:
            return not self._cancelled and all(entry.paused for entry in self.scheduler.entries.values())

    # -- from the engine's thread --------------------------------------------------------------------------------

    def tick(self) -> list[Event]:
        """Decide and execute one tick; returns its events in order."""
        with self._lock:
            self._refuse_if_closed()
            plan, ended = self._plan()
        events = self._execute(plan)
        with self._lock:
            for state_id in plan.run:
                if state_id not in self.runner.states:
                    self.scheduler.finished(state_id)
            return [*ended, *(self._settle(event) for event in events)]

    def close(self) -> None:
        """Free everything and release the other ranks. The engine cannot be used afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.mesh.size > 1:
            broadcast_bytes(self.mesh, encode(TickPlan(stop=True)))
        self.runner.close()

    def _plan(self) -> tuple[TickPlan, list[Event]]:
        for request_id in self.scheduler.expired(self.clock()):
            self._cancelled.setdefault(request_id, DeadlineError("the deadline of the request has passed"))
        dropped = {id_: error for id_, error in self._cancelled.items() if id_ in self.scheduler.entries}
        ended: list[Event] = [Failed(id_, error) for id_, error in dropped.items()]
        for request_id in dropped:
            self._forget(request_id)
        admit, run = self.scheduler.pick()
        for request in admit:
            self._waited[request.id] = self.clock() - self._arrived[request.id]
        plan = TickPlan(tuple(admit), tuple(dropped), tuple(self._pause), tuple(self._resume), tuple(run))
        self._cancelled, self._pause, self._resume = {}, [], []
        return plan, ended

    def _execute(self, plan: TickPlan) -> list[Event]:
        if self.mesh.size > 1:
            broadcast_bytes(self.mesh, encode(plan))
        return self.runner.execute(plan)

    def _settle(self, event: Event) -> Event:
        if isinstance(event, Done):
            timings = {"queue": self._waited.get(event.request_id, 0.0), **event.result.timings}
            event = Done(event.request_id, replace(event.result, timings=timings))
        if isinstance(event, Done | Failed):
            self._forget(event.request_id)
        return event

    def _forget(self, request_id: str) -> None:
        self.scheduler.remove(request_id)
        self._arrived.pop(request_id, None)
        self._waited.pop(request_id, None)

    def _hold(self, request_id: str, paused: bool) -> None:
        with self._lock:
            entry = self.scheduler.entries.get(request_id)
            if entry is None:
                raise RequestError(f"there is no request {request_id}; it is unknown or has ended", "request_id")
            if entry.paused != paused:
                entry.paused = paused
                (self._pause if paused else self._resume).append(request_id)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineClosedError("this engine is closed; make a new one")


def follow(runner: Runner) -> None:
    """What every rank but 0 does: execute the plans that rank 0 sends, until it stops."""
    mesh = runner.pipeline.ctx.mesh
    while not (plan := decode(broadcast_bytes(mesh, None), runner.pipeline.spec)).stop:
        runner.execute(plan)
    runner.close()
