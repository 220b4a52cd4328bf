"""The runner: executes one tick over the states it holds.

Driven by the engine, which decides who runs; on several ranks every rank's runner executes the same plan. Owns the
states, the memo and the isolation of failures: whatever a stage or a network raises ends that request alone.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import ModelError, OmnimuseError
from omnimuse.core.output import Done, Event, Failed, Preview, Progress, Result
from omnimuse.core.request import Request
from omnimuse.media.image import to_pixels
from omnimuse.parallel.branches import share
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.rows import forward, group
from omnimuse.pipeline.stage import Loop, Row, Stage
from omnimuse.pipeline.state import State
from omnimuse.worker.memo import Memo
from omnimuse.worker.plan import TickPlan

CPU = torch.device("cpu")


@dataclass
class Job:
    """A request on the runner: its states still in the making, and the outputs already finished."""

    request: Request
    states: dict[str, State]
    finished: dict[int, Tensor] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


class Runner:
    """Executes plans for one pipeline. Not thread-safe: one thread drives it."""

    def __init__(self, pipeline: Pipeline, config: ScheduleConfig, resources: ExitStack | None = None) -> None:
        self.pipeline = pipeline
        self.resources = resources or ExitStack()
        self.config = config
        self.memo = Memo(config.memo_bytes)
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, State] = {}
        self.forwards = 0
        self._events: list[Event] = []

    def tokens(self, request: Request) -> int:
        """The row tokens of one step of one output of `request`."""
        loops = [stage for stage in self.pipeline.stages if isinstance(stage, Loop)]
        return max((loop.tokens(self.pipeline.ctx, request) for loop in loops), default=1)

    @torch.inference_mode()
    def execute(self, plan: TickPlan) -> list[Event]:
        """Carry out one tick and return what happened, in order."""
        self._events = []
        for request_id in plan.drop:
            self._drop(request_id)
        for request in plan.admit:
            self._admit(request)
        for state in self._states_of(plan.pause):
            state.to(CPU)
        for state in self._states_of(plan.resume):
            state.to(self.pipeline.ctx.device)
        chosen = [self.states[state_id] for state_id in plan.run if state_id in self.states]
        self._run_stages(chosen)
        alive = [state for state in chosen if state.id in self.states]
        self._run_loops([state for state in alive if isinstance(self.pipeline.stage_of(state), Loop)])
        self._run_stages(chosen)
        self._reap(chosen)
        return self._events

    def close(self) -> None:
        """Drop every state and remembered output, let go of the weights, release what the build holds."""
        for request_id in list(self.jobs):
            self._drop(request_id)
        self.memo.clear()
        self.pipeline.ctx.components = {}
        self.resources.close()

    # -- taking in and letting go --------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        states = {state.id: state for state in self.pipeline.states(request, strict=self.config.strict_slots)}
        self.jobs[request.id] = Job(request, states)
        self.states.update(states)

    def _drop(self, request_id: str) -> None:
        job = self.jobs.pop(request_id, None)
        for state in job.states.values() if job else ():
            self.states.pop(state.id, None)
            state.clear()

    def _states_of(self, request_ids: Iterable[str]) -> list[State]:
        return [
            s for request_id in request_ids if request_id in self.jobs for s in self.jobs[request_id].states.values()
        ]

    def _reap(self, states: Sequence[State]) -> None:
        for state in states:
            if state.id not in self.states or self.pipeline.stage_of(state) is not None:
                continue
            job = self.jobs[state.request.id]
            job.finished[state.output] = state[self.pipeline.result].detach().to(CPU)
            for name, seconds in state.timings.items():
                job.timings[name] = max(job.timings.get(name, 0.0), seconds)
            del self.states[state.id], job.states[state.id]
            state.clear()
            if not job.states:
                self._finish(job)

    def _finish(self, job: Job) -> None:
        request = job.request
        outputs = torch.stack([job.finished[index] for index in range(request.outputs)])  # [n, ...]
        del self.jobs[request.id]
        seeds = [request.seed(index) for index in range(request.outputs)]
        params = replace(request.params, extra=request.extra)
        result = Result(request.id, request.prompt, params, output=outputs, seeds=seeds, timings=job.timings)
        self._events.append(Done(request.id, result))

    def _fail(self, state: State, error: Exception, where: str) -> None:
        if state.request.id not in self.jobs:
            return
        if not isinstance(error, OmnimuseError):
            wrapped = ModelError(f"{where} failed with {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._drop(state.request.id)
        self._events.append(Failed(state.request.id, error))

    # -- one-shot stages -----------------------------------------------------------------------------------------

    def _run_stages(self, states: Sequence[State]) -> None:
        """Every one-shot stage of each state up to its next loop or the end.

        Not one stage a tick: beside long steps of others, a tick is long.
        """
        for state in states:
            while state.id in self.states and (stage := self.pipeline.stage_of(state)) is not None:
                if isinstance(stage, Loop):
                    break
                self._run_stage(stage, state)

    def _run_stage(self, stage: Stage, state: State) -> None:
        started = time.perf_counter()
        try:
            self._run_or_recall(stage, state)
        except Exception as error:  # the worker loop: a failing stage ends its own request, nothing else
            self._fail(state, error, stage.name)
            return
        state.timings[stage.name] = time.perf_counter() - started
        self._events.append(Progress(state.request.id, state.output, stage.name, 1, 1))

    def _run_or_recall(self, stage: Stage, state: State) -> None:
        """Run `stage`, or take its outputs from an equal run: equal keys promise equal outputs."""
        with state.opened_for(stage):
            content = stage.key(self.pipeline.ctx, state)
        if content is None:
            self.pipeline.run_stage(stage, state)
            return
        key: Hashable = (type(stage), content, self.pipeline.ctx.version)
        known = self.memo.get(key)
        with state.opened_for(stage):
            if known is None:
                stage.run(self.pipeline.ctx, [state])
                self.memo.put(key, tuple(state[slot] for slot in stage.writes))
            else:
                for slot, value in zip(stage.writes, known, strict=True):
                    state[slot] = value
        self.pipeline.advance(state)

    # -- loops ---------------------------------------------------------------------------------------------------

    def _run_loops(self, states: Sequence[State]) -> None:
        started = time.perf_counter()
        rows: list[Row] = []
        for state in states:
            loop = self._loop(state)
            try:
                if not state.plan:
                    self.pipeline.begin(loop, state)
                rows.extend(self.pipeline.rows(loop, state))
            except Exception as error:  # the worker loop
                self._fail(state, error, loop.name)
        predictions, failures = self._evaluate(rows)
        seconds = time.perf_counter() - started
        evaluated = {row.state.id for row in rows}
        for state in states:
            if state.id not in self.states:
                continue
            loop, began = self._loop(state), time.perf_counter()
            if state.id in failures:
                self._fail(state, failures[state.id], loop.name)
            else:
                self._step(loop, state, predictions.get(state.id, {}))
            own = time.perf_counter() - began  # where loops without rows do all their work
            spent = own + (seconds if state.id in evaluated else 0.0)
            state.timings[loop.name] = state.timings.get(loop.name, 0.0) + spent

    def _step(self, loop: Loop, state: State, predictions: dict[str, Tensor]) -> None:
        step, steps = state.position + 1, len(state.plan)
        try:
            self.pipeline.apply(loop, state, predictions)
            self._events.append(Progress(state.request.id, state.output, loop.name, step, steps))
            every = state.request.previews
            if every and step % every == 0 and step < steps:
                self._preview(loop, state, step)
        except Exception as error:  # the worker loop
            self._fail(state, error, loop.name)

    def _preview(self, loop: Loop, state: State, step: int) -> None:
        picture = loop.peek(self.pipeline.ctx, state)  # [3, h, w]
        if picture is not None:
            image = to_pixels(picture)  # [h, w, 3]
            self._events.append(Preview(state.request.id, state.output, step, image))

    def _loop(self, state: State) -> Loop:
        stage = self.pipeline.stage_of(state)
        assert isinstance(stage, Loop)
        return stage

    # -- forwards ------------------------------------------------------------------------------------------------

    def _evaluate(self, rows: Sequence[Row]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Exception]]:
        """Predictions by state and branch, and the failures by state; every rank learns all of both."""
        ctx, found, failures = self.pipeline.ctx, dict[int, Tensor](), dict[int, Exception]()
        owners = [owner_of(ctx.mesh, row.branch) for row in rows]
        mine = [row for row, owner in zip(rows, owners, strict=True) if owner == ctx.mesh.axis("branches").index]
        for part in group(ctx, mine, exact=self.config.exact, tokens=self.config.tick_tokens):
            self._forward(part, found, failures)
        if ctx.mesh.size > 1:
            found, failures = self._share(rows, owners, found, failures)
        predictions: dict[str, dict[str, Tensor]] = {}
        for row in rows:
            if id(row) in found:
                predictions.setdefault(row.state.id, {})[row.branch] = found[id(row)]
        return predictions, {row.state.id: failures[id(row)] for row in rows if id(row) in failures}

    def _forward(self, rows: Sequence[Row], found: dict[int, Tensor], failures: dict[int, Exception]) -> None:
        """One shared forward; when it fails, each state tries alone, so that only the guilty one fails."""
        try:
            self.forwards += 1
            found.update((id(row), out) for row, out in zip(rows, forward(self.pipeline.ctx, rows), strict=True))
        except Exception as error:  # the worker loop
            by_state: dict[str, list[Row]] = {}
            for row in rows:
                by_state.setdefault(row.state.id, []).append(row)
            if len(by_state) == 1:
                failures.update((id(row), error) for row in rows)
                return
            for part in by_state.values():
                self._forward(part, found, failures)

    def _share(
        self,
        rows: Sequence[Row],
        owners: Sequence[int],
        found: dict[int, Tensor],
        failures: dict[int, Exception],
    ) -> tuple[dict[int, Tensor], dict[int, Exception]]:
        """What all ranks found, and what any of them failed at, agreed on by all."""
        mine = {i: found.get(id(row), failures.get(id(row))) for i, row in enumerate(rows)}
        owned = {i: outcome for i, outcome in mine.items() if outcome is not None}
        agreed = share(self.pipeline.ctx.mesh, owned, owners, self.pipeline.ctx.device)
        outcomes = {id(row): outcome for row, outcome in zip(rows, agreed, strict=True)}
        return (
            {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Tensor)},
            {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Exception)},
        )


def owner_of(mesh: Mesh, branch: str) -> int:
    """The index, on the branches axis, of the rank that computes `branch`: the positive one is rank 0's."""
    return 0 if branch == "positive" else 1 % mesh.axis("branches").size
