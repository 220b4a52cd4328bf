"""The runner: executes one tick over the states it holds.

Driven by the engine, which decides who runs; on several ranks every rank's runner executes the same plan. Owns the
states, the memo and the isolation of failures: whatever a stage or a network raises ends that request alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.core.request import Request
from omnimuse.observe.labels import OTHER
from omnimuse.observe.profile import marked
from omnimuse.offload.residency import Residency
from omnimuse.parallel.agree import agree_on_stage
from omnimuse.pipeline import lent
from omnimuse.pipeline.memo import Memo
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Loop, Row, Stage
from omnimuse.pipeline.state import State
from omnimuse.pipeline.taken import taken
from omnimuse.worker.blocks import Blocks, runs_for
from omnimuse.worker.clock import Clock, Span, Without, clock_for
from omnimuse.worker.crew import Crew
from omnimuse.worker.failures import settle
from omnimuse.worker.forwards import Forwards, Predictions
from omnimuse.worker.handover import Hand
from omnimuse.worker.job import Job
from omnimuse.worker.pace import Offer, Party, Price
from omnimuse.worker.place import held_bytes
from omnimuse.worker.plan import TickPlan
from omnimuse.worker.remembered import Remembered
from omnimuse.worker.rest import Rest
from omnimuse.worker.shortages import Check, Shortages
from omnimuse.worker.strides import shared_out, strides
from omnimuse.worker.telling import Telling

log = logging.getLogger(__name__)

TEXTS = ("encode prompt", "encode negative prompt")
"""Stages that read texts alone."""


Evaluated = tuple[Predictions, dict[str, OmnimuseError], dict[str, set[str]]]
"""Predictions, failures by state, and which networks were asked for each."""


class Isolated:
    """What fails within is told to `settle`, with whose it is and where, and goes no further.

    No generator: it is entered several times a row of every tick.
    """

    __slots__ = ("_request_id", "_settle", "_where")

    def __init__(self, settle: Callable[[str, str, Exception], None], request_id: str, where: str) -> None:
        self._settle, self._request_id, self._where = settle, request_id, where

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        self._settle(self._request_id, self._where, error)
        return True


class Runner:
    """Executes plans for one pipeline. Not thread-safe: one thread drives it.

    `retried_stages` counts, by name, stages that ran out of memory and then did with less; their requests went on.
    `rest` is where weights are while nobody draws. By its `hand` a pool takes over requests and hands them over.
    `repeated` says how many steps more than one the last tick had. If it is `profiled`, the log has what parts of every
    request took.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: ScheduleConfig,
        resources: ExitStack | None = None,
        clock: Clock | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.resources = resources or ExitStack()
        self.config = config
        self.memo = pipeline.ctx.memo = Memo(config.memo_bytes)
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, State] = {}
        self.remembered = Remembered(pipeline.ctx, self.jobs, self.states)
        self.clock = clock or clock_for(pipeline.ctx.device)
        self.blocks = Blocks(self.clock, partial(held_bytes, pipeline.ctx.device))
        self.forwards = Forwards(pipeline.ctx, config, self.clock, crew)
        self.rest = Rest(pipeline.ctx.components, pipeline.ctx.device)
        self.hand = Hand(pipeline)
        self.writers = pipeline.ctx.writers
        self._loops = [stage for stage in pipeline.own if isinstance(stage, Loop)]
        self._first = next((loop.uses[0] for loop in self._loops if loop.uses), None)
        self.repeated, self.profiled = 0, False
        self.telling = Telling(pipeline.ctx)
        self.shortages = Shortages(pipeline, self.remembered.forget)
        self.retried_stages = self.shortages.retried

    def tokens(self, request: Request) -> int:
        """The row tokens of one step of one output of `request`."""
        return max((loop.tokens(self.pipeline.ctx, request) for loop in self._loops), default=1)

    def working(self, request: Request, token_bytes: Mapping[str, int]) -> int:
        """The bytes that one row of `request` takes at the least, if a token takes so many in each network."""
        most = 0
        for loop in self._loops:
            tokens = loop.tokens(self.pipeline.ctx, request) // max(1, len(request.branches))
            most = max(most, tokens * max((token_bytes.get(name, 0) for name in loop.uses), default=0))
        return most

    def remembers(self, request: Request) -> tuple[int, int]:
        """The bytes that one output of `request` comes to remember, at least and at most."""
        found = [loop.remembers(self.pipeline.ctx, request) for loop in self._loops]
        return max((least for least, _ in found), default=0), max((most for _, most in found), default=0)

    def keeps(self, request_id: str) -> int:
        """The bytes where it computes that states of a request take, also while they are paused."""
        return self._taken(request_id, lambda job: [state.remembered() for state in job.states.values()])

    def finished(self, request_id: str) -> int:
        """The bytes where it computes that outputs of a request take which are finished, while others are not."""
        return self._taken(request_id, lambda job: [job.made, job.carried])

    def cost(self, state_id: str) -> Price | None:
        """The work of that state's next step; None where it has no plan yet, or wakes when the tick begins."""
        state = self.states.get(state_id)
        if state is None or state.parked:
            return None
        stage = self.pipeline.foremost(state)
        if not state.plan or not isinstance(stage, Loop):
            return None
        return Price(stage.cost(self.pipeline.ctx, state), state.plan[state.position].network)

    def waits(self, state_id: str) -> bool:
        """Whether that state has nothing to do before more of it comes from another pool, or from who writes it."""
        if self.hand.first and not self.writers:
            return False
        state = self.states.get(state_id)
        if state is None or state.parked or not (self.writers or self.hand.awaits(state.request.id)):
            return False
        return not any(self.pipeline.ready(state) for _ in self.pipeline.turns(state))

    def joins(self, party: Party, offer: Offer) -> bool:
        """Whether that state should step in one tick with the `party`: they share a forward, and it saves time.

        What is not yet in a loop is taken to share the first network of a loop.
        """
        return self.forwards.joins(party, offer, self._first)

    @torch.inference_mode()
    def execute(self, plan: TickPlan, events: list[Event]) -> None:
        """Carry out one tick and add what happened to `events`, in order. EngineDeadError: nothing can go on."""
        self.telling.events = events
        for request_id in plan.drop:
            self._drop(request_id)
        for request in plan.admit:
            self._admit(request)
        for request_id in plan.park:
            self._each_state(request_id, "parking", State.park)
            self.memo.leave(request_id)
        for request_id in plan.wake:
            self._each_state(request_id, "waking", self._wake)
        self.remembered.within(plan.memo)
        chosen = [self.states[state_id] for state_id in plan.run if state_id in self.states]
        self.repeated, steps = 0, shared_out(self.pipeline, chosen, plan.steps)
        for track in range(max(1, len(self.pipeline.tracks))):
            for state in chosen:
                state.turn(track)
            self._run_stages(chosen)
            able = [*self._able(chosen)]
            for stride in strides(self.pipeline, able, steps - self.repeated, self.states):
                self._run_loops(able, plan.teams)
                self.repeated += stride
            self.repeated -= bool(able)  # what it says is how many more
            for state, loop in able:
                with self._isolated(state.request.id, loop.name):
                    self.telling.tell([state])
            self._run_stages(chosen)
        self._reap(chosen)
        self._hand_over()

    @torch.inference_mode()  # a library's call that is unwound puts back the modes that it found, which were these
    def close(self) -> None:
        """Drop every state and remembered output, let go of the weights, release what the build holds."""
        for request_id in list(self.jobs):
            self._drop(request_id)
        self.remembered.forget()
        self.forwards.close()
        self.rest.close()
        self.pipeline.ctx.components = Residency({})
        self.resources.close()

    # -- taking in and letting go --------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        job = self.jobs[request.id] = Job(request, {})
        with self._isolated(request.id, "starting"):
            job.states = {state.id: state for state in self.pipeline.states(request, strict=self.config.strict_slots)}
            self.states.update(job.states)
            self.hand.begin(job.states.values())

    def _taken(self, request_id: str, part: Callable[[Job], list[object]]) -> int:
        job = self.jobs.get(request_id)
        if job is None or self.pipeline.ctx.device.type != "cpu":  # what is paused or finished waits on the CPU
            return 0
        return taken(*part(job))

    def _drop(self, request_id: str) -> None:
        self.hand.forget(request_id)
        job = self.jobs.pop(request_id, None)
        for state in job.states.values() if job else ():
            self.states.pop(state.id, None)
            state.clear()

    def _each_state(self, request_id: str, where: str, act: Callable[[State], None]) -> None:
        if request_id in self.jobs:
            with self._isolated(request_id, where):
                for state in self.jobs[request_id].states.values():
                    act(state)

    def _wake(self, state: State) -> None:
        state.wake(self.pipeline.ctx.device)

    def _reap(self, states: Sequence[State]) -> None:
        for state in states:
            if state.plan or state.id not in self.states or not self.pipeline.finished(state):
                continue
            if self.hand.awaits(state.request.id):
                continue
            job = self.jobs[state.request.id]
            with self._isolated(job.request.id, "handing over"):
                self.hand.complete(state)
                if not self.hand.last:
                    job.carried[state.output] = self.hand.whole(state)
                job.take(state, self.pipeline.made(state) if self.hand.last else {})
                del self.states[state.id]
                state.clear()
                if not job.states:
                    self._finish(job)

    def _hand_over(self) -> None:
        """Where the next pool can begin, or go on, with what slots have grown by."""
        for job in () if self.hand.last else list(self.jobs.values()):
            with self._isolated(job.request.id, "handing over"):
                if (piece := self.hand.piece(job.request, job.states.values(), job.carried)) is not None:
                    self.telling.events.append(piece)

    def _finish(self, job: Job) -> None:
        del self.jobs[job.request.id]
        spent = self.hand.spent(job.request.id).then(job.took())
        if self.hand.last:
            self.telling.events.append(Done(job.request.id, job.result(self.pipeline, spent)))
        else:
            self.telling.events.append(self.hand.final(job.request.id, job.carried, spent))
        self.hand.forget(job.request.id)

    def _isolated(self, request_id: str, where: str) -> Isolated:
        """Whatever fails in here ends this request and nothing else. EngineDeadError: nothing can go on."""
        return Isolated(self._settle, request_id, where)

    def _settle(self, request_id: str, where: str, error: Exception) -> None:
        failure = settle(error, where)
        agree_on_stage(self.pipeline.ctx.mesh, f"{request_id} {where}", failure)
        self._fail(request_id, failure)

    def _fail(self, request_id: str, error: OmnimuseError) -> None:
        if (job := self.jobs.get(request_id)) is not None:
            self.telling.tell(job.states.values())
            self._drop(request_id)
            self.telling.events.append(Failed(request_id, error))

    # -- one-shot stages -----------------------------------------------------------------------------------------

    def _run_stages(self, states: Sequence[State]) -> None:
        """Every one-shot stage of each state up to its next loop that has something to do for it, or the end.

        Not one stage a tick: beside long steps of others, a tick is long.
        """
        for state in states:
            # Who is in the midst of a loop has no other stage.
            while not state.plan and state.id in self.states and self.pipeline.ready(state):
                stage = self.pipeline.stage_of(state)
                if not isinstance(stage, Loop):
                    if stage is None:
                        break
                    self._run_stage(stage, state)
                elif not self._skips(stage, state):
                    break

    def _skips(self, loop: Loop, state: State) -> bool:
        skipped = True  # where it fails, the request has ended
        with self._isolated(state.request.id, loop.name):
            skipped = self.pipeline.skip(loop, state)
        return skipped

    def _run_stage(self, stage: Stage, state: State) -> None:
        ctx, began, known = self.pipeline.ctx, self.clock.mark(), set(state.timed)
        with self._isolated(state.request.id, stage.name), marked(stage.label):
            with self.blocks.watched(ctx.components, [state]) as ran:
                self.shortages.run(stage, state, partial(self._run_or_recall, stage, state))
            self.telling.grown(state)
            if state.goes_without(stage):
                return
            job = self.jobs[state.request.id]
            parts = sum(each for name, each in state.timed.items() if name not in known | {stage.name})
            job.spend(state, stage, held_bytes(ctx.device), Without(self.clock.since(began), parts))
            job.see(state, ran)
            self.telling.events.append(Progress(state.request.id, state.output, stage.name, 1, 1))

    def _run_or_recall(self, stage: Stage, state: State, ctx: Context, check: Check) -> None:
        """Run `stage`, or take its outputs from an equal run: equal keys promise equal outputs.

        Of what is tried only texts are recalled: what else is encoded may be what takes most.
        """
        with state.opened_for(stage):
            recalls = not state.request.tried or stage.name in TEXTS
            content = stage.key(ctx, state) if recalls else None
        key: Hashable = (type(stage), content, state.adapters(stage.uses))
        known = None if content is None else self.memo.get(key, state.request.id)
        with self.pipeline.opened(stage, state):
            if known is not None:
                *slots, note = known
                for slot, value in zip(stage.writes, slots, strict=True):
                    state[slot] = value
                if note is not None:
                    state.notes[stage.name] = note
            else:
                lent.run(stage, ctx, state)
            check()
            if known is None and content is not None:
                values = (*(state[slot] for slot in stage.writes), state.notes.get(stage.name))
                self.memo.put(key, values, holder=state.request.id)

    # -- loops ---------------------------------------------------------------------------------------------------

    def _able(self, states: Sequence[State]) -> Iterator[tuple[State, Loop]]:
        """Those in a loop that has something to do for them."""
        for state in states:
            if state.id in self.states and self.pipeline.ready(state):
                stage = self.pipeline.stage_of(state)
                if isinstance(stage, Loop):
                    yield state, stage

    def _run_loops(self, stepping: Sequence[tuple[State, Loop]], teams: int) -> None:
        ctx, began, rows = self.pipeline.ctx, self.clock.mark(), list[Row]()
        labels, begun = {loop.label for _, loop in stepping}, dict[str, Span]()
        for state, loop in stepping:
            with self._isolated(state.request.id, loop.name):
                if not state.plan:
                    begun[state.id] = begin(self, loop, state)
                rows.extend(self.pipeline.rows(loop, state))
        with marked(" and ".join(sorted(labels)) or OTHER), marked(self.blocks.steps(stepping)):
            with self.blocks.watched(ctx.components, (state for state, _ in stepping)) as ran:
                predictions, failures, asked = self._evaluate(rows, teams)
        shared = self.clock.since(began)
        spent: list[tuple[State, Loop, list[Span]]] = []
        for state, loop in stepping:
            if state.id not in self.states:
                continue
            if state.id in failures:
                self._fail(state.request.id, failures[state.id])
                continue
            began = self.clock.mark()
            label = nullcontext() if state.id in asked else marked(loop.label)
            with label, self.blocks.watched(ctx.components, [state]) as alone:
                self._step(loop, state, predictions.get(state.id, {}))
            spans = [self.clock.since(began)]
            if state.id in asked:
                spans.append(shared)
            elif state.id in begun:  # loops without rows do all their work as they begin, and in the step
                spans.append(begun[state.id])
            spent.append((state, loop, spans))
            if (ran or alone) and (job := self.jobs.get(state.request.id)):
                job.see(state, [*runs_for(state.id, ran, asked), *alone])
        held = held_bytes(ctx.device)  # of the process, so once for all: the system is asked
        for state, loop, spans in spent:
            if job := self.jobs.get(state.request.id):
                job.spend(state, loop, held, *spans)

    def _evaluate(self, rows: Sequence[Row], teams: int) -> Evaluated:
        """The predictions of `rows`, and of what their loops want to know besides, round after round: the last ones."""
        predictions: Predictions = {}
        failures, asked = dict[str, OmnimuseError](), dict[str, set[str]]()
        while rows := [row for row in rows if row.state.id in self.states]:
            for row in rows:
                asked.setdefault(row.state.id, set()).add(row.network)
            found, failed = self.forwards.evaluate(rows, teams)
            predictions, failures = predictions | found, failures | failed
            states = {row.state.id: row.state for row in rows if row.state.id not in failed}
            rows = []
            for state in states.values():
                if (loop := self._loop(state)).asks:
                    with self._isolated(state.request.id, loop.name):
                        rows.extend(self.pipeline.more(loop, state, found.get(state.id, {})))
        return predictions, failures, asked

    def _step(self, loop: Loop, state: State, predictions: dict[str, Tensor]) -> None:
        before, steps = state.position, None if loop.grows else len(state.plan)
        with self._isolated(state.request.id, loop.name):
            job, work = self.jobs[state.request.id], partial(self.pipeline.apply, loop, state, predictions)
            if not loop.tiles:
                work()
            elif self.shortages.began_anew(loop, state, job.lean, work):
                return
            self.telling.step(loop, state, before + state.stride, steps)

    def _loop(self, state: State) -> Loop:
        stage = self.pipeline.stage_of(state)
        assert isinstance(stage, Loop)
        return stage


def begin(runner: Runner, loop: Loop, state: State) -> Span:
    """Have `state` begin with `loop`: in a library's call that is its first step, and what comes before."""
    began = runner.clock.mark()
    with runner.blocks.watched(runner.pipeline.ctx.components, [state]) as ran:
        runner.pipeline.begin(loop, state)
    runner.jobs[state.request.id].see(state, ran)
    return runner.clock.since(began)
