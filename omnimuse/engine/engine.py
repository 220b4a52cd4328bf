"""The engine: takes requests in, decides each tick, drives the runner, hands events out.

`engine/local.py` drives it on a thread of its own. `submit`, `cancel`, `pause` and `resume` may be called from any
thread; one thread calls `tick`. On several ranks, rank 0 holds the engine and sends every tick's plan to the others.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

from omnimuse.core.errors import (
    CapacityError,
    ConfigError,
    DeadlineError,
    EngineClosedError,
    EngineDeadError,
    MemoryShortageError,
    RequestCancelled,
    RequestError,
)
from omnimuse.core.output import Done, Event, Failed, Handed, is_last
from omnimuse.core.request import Ask, Door, Request
from omnimuse.engine.fitting import Fitting
from omnimuse.engine.foretelling import Foretelling, NotNow, Unwanted, drawn
from omnimuse.engine.given import Given
from omnimuse.engine.recordings import Recordings, follow_recording
from omnimuse.engine.scheduler import FOREVER, Scheduler
from omnimuse.engine.wearing import begins
from omnimuse.observe.profile import Recorder
from omnimuse.parallel.collectives import broadcast_bytes
from omnimuse.worker.adapters import try_on_together
from omnimuse.worker.governor import Governor
from omnimuse.worker.handover import apart
from omnimuse.worker.pace import Offer, Price
from omnimuse.worker.plan import Heard, TickPlan, decode, encode, fingerprint
from omnimuse.worker.rest import begin_together, end_together
from omnimuse.worker.room import Space
from omnimuse.worker.runner import Runner

log = logging.getLogger(__name__)

ENDS = (Done, Failed, Handed)
"""What may be the last that is heard of a request."""
MOST = 8
"""Tokens that are written in one tick by one alone; several write twice as many each, as deciding takes longer then."""


class Engine:
    """One engine over one runner; `clock` gives seconds and is replaced in tests. `space` says
    what memory there is beside the weights, and what these take.

    `woken` is called when those who wait for somebody outside have something to do again, `moved` at steps untold of.
    Who is `stopping` it waits for no small ones.
    `dead` says why nothing more will come of it, once a tick has failed as a whole.
    """

    def __init__(
        self,
        runner: Runner,
        door: Door,
        clock: Callable[[], float] = time.monotonic,
        governor: Governor | None = None,
        space: Space | None = None,
    ) -> None:
        self.runner = runner
        self.space = space or Space()
        self.governor = governor
        self.door = door
        self.clock = clock
        self.scheduler = Scheduler(runner.config, runner.pipeline.ctx.adapters.limit)
        self.mesh = runner.pipeline.ctx.mesh
        self.dead: EngineDeadError | None = None
        self._lock = threading.Lock()
        self._cancelled: dict[str, RequestCancelled] = {}
        self._arrived: dict[str, float] = {}
        self._waited: dict[str, float] = {}
        self._unwanted: list[str] = []
        self._closed = False
        self._news, self._starved = 0, False
        self._step = 0.0  # seconds of the last tick, for each token of those that it wrote
        self.recordings = Recordings(runner, self.tell, self._refuse_if_over)
        self.foretelling = Foretelling(door, runner, self._draws, lambda: self.clock())
        self.fitting = Fitting(runner, self.foretelling)
        self.given = Given(runner.pipeline.ctx.device)
        self.woken: Callable[[], None] = lambda: None
        self.moved: Callable[[], None] = lambda: None
        self.stopping = False
        for writer in runner.writers:
            writer.news = self.wake

    # -- from any thread -----------------------------------------------------------------------------------------

    def make_request(self, ask: Ask) -> Request:
        """`ask`, checked and completed; nothing is queued yet."""
        return self.door.make_request(ask, self.clock(), secrets.randbelow(2**32))

    def submit(self, request: Request) -> str:
        """Queue a request and return its id; CapacityError when the queue is full.

        RequestError if what it takes, or comes to remember, can never fit beside the weights.
        """
        self.door.with_cache(request)  # refuses what another door, that has seen no network, has let in
        tokens, most, need = self.fitting.asks(request, self.space)
        with self._lock:
            self._refuse_if_over()
            now = self.clock()
            request = request.promised(self.scheduler.alone(request, tokens), now)
            self.scheduler.add(request, tokens, now, most, need)
            self._arrived[request.id] = now
            self._hear_news()
        return request.id

    def hear(self, heard: Heard) -> None:
        """More of a request has come from the pool before this one; comes between two ticks. All ranks hear it.

        EngineDeadError, and nothing more will come of this engine, if one of them is gone.
        """
        try:
            self.tell(TickPlan(heard=heard))
        except EngineDeadError as error:
            self.die(error)
            raise
        take_over(self.runner, heard)
        with self._lock:
            self._hear_news()

    def forget(self, request_id: str) -> None:
        """Nothing will be done with what has come of a request; comes between two ticks."""
        with self._lock:
            self._unwanted.append(request_id)

    def taken(self, request_id: str) -> None:
        """The pool behind this one has taken a piece of a request; comes between two ticks."""
        self.runner.hand.taken(request_id)
        with self._lock:
            self._hear_news()

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step boundary; unknown or finished ids are ignored."""
        with self._lock:
            if request_id in self.scheduler.entries:
                self._cancelled.setdefault(request_id, RequestCancelled("the request was cancelled"))

    def _hear_news(self) -> None:
        """Something has changed that those who have nothing to do may wait for."""
        self._news += 1
        self._starved = False

    def wake(self) -> None:
        """Something has come for who waits."""
        with self._lock:
            self._hear_news()
        self.woken()

    def pause(self, request_id: str) -> None:
        """Hold a request between steps: it gives up its place, and its states move to the CPU."""
        self._hold(request_id, True)

    def resume(self, request_id: str) -> None:
        """Let a paused request go on, as soon as there is a place for it."""
        self._hold(request_id, False)

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that this engine computes with."""
        ctx = self.runner.pipeline.ctx
        return {"dtype": str(ctx.dtype).removeprefix("torch."), "device": str(ctx.device)}

    @property
    def asleep(self) -> bool:
        """Whether the weights are away, and requests wait."""
        return self.runner.rest.begun

    @property
    def idle(self) -> bool:
        """Whether a tick would have nothing to do now."""
        return self.rest() != 0.0

    def rest(self) -> float | None:
        """The seconds for which there is nothing to do: 0 if there is, None if only somebody's call can change it."""
        with self._lock:
            if self._cancelled or self._unwanted or (self.scheduler.busy and not self.asleep and not self._starved):
                return 0.0
            deadline = self.scheduler.next_deadline()
            return None if deadline is None else max(0.0, deadline - self.clock())

    # -- from the engine's thread --------------------------------------------------------------------------------

    def tick(self, brief: float = 0.0) -> list[Event]:
        """Decide and execute one tick; returns its events in order.

        Where nothing is done but a token written by each, and the last one took less than `brief` seconds, as many
        are written as there is time for: what is decided between tokens takes longer than those of a small network.

        A failure of the tick as a whole, not of a request, ends the engine: every request fails with EngineDeadError.
        """
        with self._lock:
            self._refuse_if_over()
        events: list[Event] = []  # what ended before a failure is told all the same
        try:
            self.reckon()
            with self._lock:
                plan, news = self._plan(events, brief), self._news
            plan = self._fitting(plan, events)
            began = self.clock()
            self._execute(plan, events)
            if plan.run:
                self._step = (self.clock() - began) / (1 + self.runner.repeated)
            with self._lock:  # in a pool, who has nothing to do waits for another
                self._starved = plan == TickPlan() and self._news == news and not self.asleep
        except Exception as error:  # the worker loop: nobody is left waiting
            self.die(error)
        with self._lock:
            if self.dead is not None:
                ended = {event.request_id for event in events if isinstance(event, Done | Failed)}
                lost = [id_ for id_ in self.scheduler.entries if id_ not in ended]
                events += [Failed(id_, EngineDeadError(str(self.dead))) for id_ in lost]
            return [self._settle(event) if isinstance(event, ENDS) else event for event in events]

    def die(self, error: Exception) -> EngineDeadError:
        """Nothing more will come of it, for this reason; what is said of it from now on."""
        log.error("the engine has died: %s", error, exc_info=None if isinstance(error, EngineDeadError) else error)
        self.dead = dead_of(error)
        return self.dead

    def sleep(self) -> int:
        """Let every weight leave the device, between two ticks; how many bytes wait elsewhere on this rank. Requests
        wait until `wake_up`, their deadlines pass. ConfigError, and all stay awake, where a rank has no room for that.
        """
        self._refuse_if_over()
        self.tell(TickPlan(rest=True))
        self.runner.remembered.forget()
        return begin_together(self.runner.rest, self.mesh)

    def wake_up(self) -> None:
        """Bring every weight back, between two ticks. MemoryShortageError, and all sleep on, if a rank has no room."""
        self._refuse_if_over()
        self.tell(TickPlan(rest=False))
        end_together(self.runner.rest, self.mesh)

    def close(self) -> None:
        """Free everything and release the other ranks. The engine cannot be used afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.dead is None:
            self.tell(TickPlan(stop=True))
        with ExitStack() as closing:  # each is closed, whatever another fails with
            for part in (self.runner, self.mesh, self.recordings):
                closing.callback(part.close)

    def tell(self, plan: TickPlan) -> None:
        """Send a plan to the other ranks, if there are any."""
        if self.mesh.size > 1:
            broadcast_bytes(self.mesh, encode(replace(plan, alive=fingerprint(self.runner.states))))

    def _plan(self, events: list[Event], brief: float) -> TickPlan:
        cancelled, self._cancelled = too_late(self.scheduler, self.clock()) | self._cancelled, {}
        dropped = {id_: error for id_, error in cancelled.items() if id_ in self.scheduler.entries}
        for request_id, error in dropped.items():
            events.append(Failed(request_id, error))
            self._forget(request_id)
        drop, self._unwanted = (*dropped, *self._unwanted), []
        if self.asleep:
            return TickPlan(drop)
        left, runner = self.space.less(self.given.bytes).room, self.runner
        room = FOREVER if left is None else left
        pick = self.scheduler.pick(self.clock(), runner.cost, runner.joins, runner.waits, room, runner.keeps)
        for request in pick.admit:
            self._waited[request.id] = self.clock() - self._arrived[request.id]
        teams = self.runner.forwards.teams(self._offered(state_id) for state_id in pick.run)
        most = MOST if len(pick.run) == 1 else 2 * MOST
        steps = min(most, int(brief / self._step)) if self._step else 1
        return TickPlan(drop, pick.admit, pick.park, pick.wake, pick.run, teams=teams, steps=max(1, steps))

    def _fitting(self, plan: TickPlan, events: list[Event]) -> TickPlan:
        """`plan` without those who would begin, and of whom small ones of their kind show that they never fit; others
        are decoded in tiles if they fit in no other way. Where something was learnt just now, nobody begins, but for
        one alone that has only read what it wears: who has room beside whom is known in the next tick.
        """
        if not plan.admit:
            return plan
        known = self.fitting.learnt
        ways = {request.id: begins(self, request) for request in plan.admit}
        admit = [way for way in ways.values() if isinstance(way, Request)]
        refused = {id_: way for id_, way in ways.items() if not isinstance(way, Request)}
        failed = [Failed(id_, error) for id_, error in refused.items() if not isinstance(error, CapacityError)]
        events += failed
        with self._lock:
            self.scheduler.postpone(refused, self.clock())  # nothing was done for them
            for event in failed:
                self._forget(event.request_id)
            entries = self.scheduler.entries
            for way in admit:
                entries[way.id].request = way
            together = [entry.request for entry in entries.values() if entry.active]
            kept, resting = self.scheduler.kept.all + self.given.bytes, self.scheduler.resting
        settled = self.fitting.learn(together, self.space.less(kept), resting)
        if not settled or self.fitting.learnt != known:
            late = {way.id for way in (self.fitting.late(admit, together, known) if settled else admit)}
            self.reckon()
            with self._lock:
                self.scheduler.postpone(late, self.clock())
            admit = [] if late else admit
        waits = ways.keys() - {way.id for way in admit}
        run = tuple(id_ for id_ in plan.run if id_.split("/")[0] not in waits)
        drop = (*plan.drop, *(event.request_id for event in failed))  # with what has come of them
        return replace(plan, drop=drop, admit=tuple(admit), run=run)

    def reckon(self) -> None:
        """Foretell what all requests take, where more is known than when they came; comes between two ticks."""
        with self._lock:
            if self.scheduler.reckon(self.fitting.learnt, lambda request: self.fitting.need(request, self.space)):
                self._hear_news()

    def _draws(self, request: Request) -> bool:
        """Whether `request` could be drawn. It has a name of its own then, as the one that it is tried for may be in
        progress.
        """
        tried = replace(request, id=f"{request.id}-tried")
        return drawn(self.alone(tried, wanted=partial(self._wanted, request.id))[-1])

    def _wanted(self, request_id: str) -> bool:
        """Whether somebody waits for that request still."""
        with self._lock:
            entry = self.scheduler.entries.get(request_id)
            late = entry is not None and entry.deadline <= self.clock()
            return not (self.stopping or late or request_id in self._cancelled)

    def alone(
        self, request: Request, came: Sequence[Heard] = (), wanted: Callable[[], bool] = lambda: True
    ) -> list[Event]:
        """What becomes of `request` here, of which that `came`, while everybody else waits; Unwanted as soon as it is
        not `wanted` any more.
        """
        for heard in came:
            self.hear(heard)
        plan, events = TickPlan(admit=(request,), run=(f"{request.id}/0",)), list[Event]()
        while not any(map(is_last, events)):
            if gone := not wanted():
                plan = TickPlan(drop=(request.id,))
            self.tell(plan)
            execute(self.runner, plan, events, self.governor)
            if gone:
                raise Unwanted
            self.moved()
            plan = TickPlan(run=plan.run)
        return events

    def _offered(self, state_id: str) -> tuple[Request, Offer]:
        """A state that advances: its request, and what its step is."""
        entry = self.scheduler.entries[state_id.split("/")[0]]
        tokens, network = self.runner.cost(state_id) or Price(entry.tokens, None)
        return entry.request, Offer(state_id, tokens, entry.steps, network)

    def _execute(self, plan: TickPlan, events: list[Event]) -> None:
        if plan.run:
            with self._lock:
                taken = self.scheduler.taken(self.foretelling.extent.guess) + self.given.bytes
            plan = replace(plan, memo=self.space.less(taken).room)
        self.tell(plan)
        execute(self.runner, plan, events, self.governor)
        with self._lock:
            if self.runner.repeated:
                self.scheduler.repeated(self.runner.repeated, self.clock())
            for state_id in plan.run:
                if state_id not in self.runner.states:
                    self.scheduler.finished(state_id, self.runner.finished(state_id.split("/")[0]))

    def _settle(self, event: Event) -> Event:
        """An event that may be the last of its request."""
        if isinstance(event, Done):
            timings = {"queue": self._waited.get(event.request_id, 0.0), **event.result.timings}
            event = Done(event.request_id, replace(event.result, timings=timings))
            self.given.add(event.result)
        if is_last(event):
            self._forget(event.request_id)
        return event

    def _forget(self, request_id: str) -> None:
        self.scheduler.remove(request_id)
        self._arrived.pop(request_id, None)
        self._waited.pop(request_id, None)

    def _hold(self, request_id: str, held: bool) -> None:
        with self._lock:
            self._hear_news()
            if not self.scheduler.hold(request_id, held):
                raise RequestError(f"there is no request {request_id}; it is unknown or has ended", "request_id")

    def _refuse_if_over(self) -> None:
        if self.dead is not None:
            raise EngineDeadError(str(self.dead))
        if self._closed:
            raise EngineClosedError("this engine is closed; make a new one")


def dead_of(error: Exception) -> EngineDeadError:
    """What is said of an engine that `error` has ended: one that knows says itself what is to be done."""
    if isinstance(error, EngineDeadError):
        return EngineDeadError(f"the engine has died: {error}")
    return EngineDeadError(f"the engine has died ({type(error).__name__}: {error}); start a new one")


def too_late(scheduler: Scheduler, now: float) -> dict[str, RequestCancelled]:
    """Who has passed its deadline, or was in progress for longer than one may be, and what is said of it."""
    late = dict[str, RequestCancelled]()
    for id_ in scheduler.overrun(now):
        limit = f"max_run={scheduler.config.max_run:g} seconds"
        late[id_] = DeadlineError(f"the request was in progress for more than {limit}; ask for less")
    for id_ in scheduler.expired(now):
        late[id_] = DeadlineError("the deadline of the request has passed")
    return late


def try_part(
    engine: Engine,
    request: Request,
    came: Callable[[int], Sequence[Heard]] | None,
    wanted: Callable[[], bool] = lambda: True,
) -> list[list[Handed]]:
    """Learn what requests like this one take here, in a pool; comes between two ticks. Unwanted as soon as it is not
    `wanted` any more.

    `came` gives what came of either of two small ones from the pool before, None if they could not be drawn there.
    Returned is what goes on of both to the next pool; no piece is the last of what cannot be drawn here.
    """
    left: list[list[Handed]] = [[], []]
    extent = engine.foretelling.extent
    sizes = [extent.of(each) for each in extent.smaller(request) or ()]

    def draw(small: Request) -> bool:
        if came is None:
            raise NotNow("they could not be drawn in the pool before")
        number = sizes.index(extent.of(small))
        told = engine.alone(small, came(number), wanted)
        left[number] = [event for event in told if isinstance(event, Handed)]
        return drawn(told[-1])

    engine.foretelling.learn(request, draw)
    engine.reckon()
    return left


def execute(runner: Runner, plan: TickPlan, events: list[Event], governor: Governor | None) -> None:
    """Carry out one tick, watched by the governor if there is one."""
    work = partial(runner.execute, plan, events)
    work() if governor is None else governor.watch(work)
    runner.telling.events = []  # what was drawn is not kept until the next tick


def take_over(runner: Runner, heard: Heard) -> None:
    """More of a request has come from the pool before this one."""
    job = runner.jobs.get(heard.request_id)
    runner.hand.hear(heard, () if job is None else job.states.values())


def follow(runner: Runner, governor: Governor | None = None) -> None:
    """What every rank but 0 does: execute the plans that rank 0 sends, until it stops."""
    mesh, recorder = runner.pipeline.ctx.mesh, Recorder()
    while not (plan := decode(broadcast_bytes(mesh, None), runner.pipeline.spec)).stop:
        if plan.alive != fingerprint(runner.states):
            raise EngineDeadError("this rank no longer works on what rank 0 works on; start the engine again")
        if plan.record is not None or plan.write:
            follow_recording(plan, recorder, runner)
        elif plan.heard is not None:
            take_over(runner, apart(plan.heard))
        elif plan.try_on:
            try_on_together(runner.pipeline.ctx.adapters, plan.try_on, mesh)  # rank 0 tells what is wrong
        elif plan.rest:
            runner.remembered.forget()
            with suppress(ConfigError):  # rank 0 tells it
                begin_together(runner.rest, mesh)
        elif plan.rest is False:
            with suppress(MemoryShortageError):
                end_together(runner.rest, mesh)
        else:
            execute(runner, plan, [], governor)
    mesh.close()
    runner.close()
