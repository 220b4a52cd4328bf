"""`Pipeline`: a family's declared stages, checked when the class is made, and the small verbs that advance states.

Families subclass it with `spec`, `stages` and `result`; the worker's runner uses the verbs. The verbs other engines
know (`prepare_encode`, `denoise_step`, `step_scheduler`, `post_decode`, `forward`) are the same code path.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from omnimuse.core.guidance import ONLY_POSITIVE
from omnimuse.core.loras import loras_of
from omnimuse.core.request import Request
from omnimuse.core.spec import MEDIA, Spec
from omnimuse.observe.labels import AROUND, word_of
from omnimuse.pipeline import lent
from omnimuse.pipeline.rows import evaluate
from omnimuse.pipeline.stage import Context, Loop, Row, Stage
from omnimuse.pipeline.state import OPEN, REQUEST_FIELDS, State

Wanted = TypeVar("Wanted", bound=Loop)
SOURCES = frozenset({"images", "region", "sounds", "videos"})
"""Request fields that may be empty."""


class PipelineError(TypeError):
    """A pipeline's declaration does not hold together; raised when its class is made."""


class Pipeline:
    """A model's declared stages over the live components of a `Context`.

    `results` says what a finished output is: by medium (`"image"`, `"video"`, `"audio"`, `"text"`) the slot that holds
    it, the one that the spec names first. A slot that is None then is a part that this request does without.

    A pipeline of several `tracks` declares those in the place of its stages: chains of stages with a cursor of their
    own, of which each goes on whenever it can. They are joined by the slots that a stage `streams`.

    `records` are the dataclasses that its slots hold, so that they may go to another pool.

    Of a pipeline that is spread over pools, `part` are the stages that run here: a state begins with the first of them,
    and is finished here behind the last.
    """

    spec: ClassVar[Spec]
    stages: ClassVar[tuple[Stage, ...]] = ()
    tracks: ClassVar[tuple[tuple[Stage, ...], ...]] = ()
    results: ClassVar[Mapping[str, str]] = MappingProxyType({"image": "image"})
    records: ClassVar[tuple[type[Any], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.tracks:
            cls.stages = tuple(chain.from_iterable(cls.tracks))
        cls._ends = tuple(accumulate(map(len, cls.tracks or (cls.stages,))))
        check_declaration(cls.__name__, cls.stages, cls.results, cls.spec)
        cls._joints = joints(cls.__name__, cls.stages, cls._ends)
        cls._touching = touching(cls.stages, cls.results.values())

    _ends: ClassVar[tuple[int, ...]] = (0,)
    _joints: ClassVar[tuple[tuple[str, ...], ...]] = ()
    _touching: ClassVar[Mapping[str, frozenset[int]]] = MappingProxyType({})

    def __init__(self, ctx: Context, part: range | None = None) -> None:
        self.ctx = ctx
        self.part = range(len(self.stages)) if part is None else part
        self.leaving = crossing(self.stages, self.part.stop)
        self._until = tuple(min(end, self.part.stop) for end in self._ends)

    # -- verbs of the runner -------------------------------------------------------------------------------------

    def states(self, request: Request, *, strict: bool = False) -> list[State]:
        """One fresh state per output of `request`."""
        worn = self.ctx.adapters.fetch(loras_of(request.params.loras))
        starts = tuple(max(start, self.part.start) for start in (0, *self._ends[:-1]))
        outputs = range(request.outputs)
        states = [State(request, output, strict=strict, worn=worn, starts=starts) for output in outputs]
        for state in states:
            state.done.update(range(self.part.start))
        return states

    def stage_of(self, state: State) -> Stage | None:
        """The stage this state needs next in the track whose turn it is, or None at the end of that."""
        return self.stages[state.stage] if state.stage < self._until[state.track] else None

    def finished(self, state: State) -> bool:
        """Whether every track is at its end."""
        return len(state.done) == self.part.stop

    @property
    def own(self) -> tuple[Stage, ...]:
        """The stages that run here."""
        return self.stages[self.part.start : self.part.stop]

    def leaves(self, state: State) -> bool:
        """Whether the stages behind this part have what they need of `state` to begin: what they read is finished, or
        grows from now on.
        """
        for slot, writer in self.leaving.items():
            if slot not in state or (writer not in state.done and slot not in self.stages[writer].streams):
                return False
        return True

    def foremost(self, state: State) -> Stage | None:
        """The stage of the first track that is not at its end, while it is its turn; None where all are."""
        for track in range(len(self._ends)):
            state.turn(track)
            if (stage := self.stage_of(state)) is not None:
                return stage
        return None

    def turns(self, state: State) -> Iterator[int]:
        """Every track that is not at its end, while it is its turn."""
        for track in range(len(self._ends)):
            state.turn(track)
            if self.stage_of(state) is not None:
                yield track

    def ready(self, state: State) -> bool:
        """Whether the track whose turn it is has something to do, and need not wait for another."""
        stage = self.stage_of(state)
        if stage is None or ((joints := self._joints[state.stage]) and not all(slot in state for slot in joints)):
            return False
        if not isinstance(stage, Loop):
            return True
        if not state.strict:
            return stage.ready(self.ctx, state)
        with state.opened_for(stage):
            return stage.ready(self.ctx, state)

    def run_stage(self, stage: Stage, state: State) -> None:
        """Run a one-shot stage for one state and move on."""
        with self.opened(stage, state):
            lent.run(stage, self.ctx, state)
        self.advance(state)

    @contextmanager
    def opened(self, stage: Stage, state: State) -> Iterator[None]:
        """While this context lasts `stage` may work on `state`: its slots are open, networks wear its adapters."""
        components = self.ctx.components
        with state.opened_for(stage), components.using(stage.uses), self.ctx.adapters.wearing(state.worn):
            components.expect(self._wanted_after(state))
            yield

    def skip(self, loop: Loop, state: State) -> bool:
        """Whether a state that has just reached `loop` has gone by it."""
        with state.opened_for(loop):
            skipped = loop.skip(self.ctx, state)
        if skipped:
            self.advance(state)
        return skipped

    def at_work(self, loop: Loop, state: State) -> AbstractContextManager[None]:
        """While this context lasts `loop` may work on `state`: its slots are open, networks wear its adapters."""
        worn = self.ctx.adapters.worn
        return OPEN if worn == state.worn and not state.strict else self._at_work(loop, state)

    @contextmanager
    def _at_work(self, loop: Loop, state: State) -> Iterator[None]:
        with state.opened_for(loop), self.ctx.adapters.wearing(state.worn):
            yield

    def begin(self, loop: Loop, state: State, ctx: Context | None = None) -> None:
        """Plan a loop for a state that has just reached it, or begins it anew with another `ctx` than our own."""
        with self.at_work(loop, state):
            state.position, state.plan = 0, loop.begin(ctx or self.ctx, state)

    def rows(self, loop: Loop, state: State) -> list[Row]:
        """The evaluations of the step this state takes next."""
        if self.ctx.components.moves:
            self.ctx.components.expect(self._wanted_after(state))
        with self.at_work(loop, state):
            return loop.rows(self.ctx, state, state.plan[state.position])

    def more(self, loop: Loop, state: State, predictions: dict[str, Tensor]) -> list[Row]:
        """The evaluations that this step needs besides those that gave `predictions`."""
        with self.at_work(loop, state):
            return loop.more(self.ctx, state, state.plan[state.position], predictions)

    def apply(
        self, loop: Loop, state: State, predictions: dict[str, Tensor], check: Callable[[], None] = lambda: None
    ) -> None:
        """Finish the step: predictions by branch move the state; after the last one the loop ends, unless `check`,
        which is called before, raises.
        """
        with self.at_work(loop, state):
            loop.apply(self.ctx, state, state.plan[state.position], predictions)
            check()
            state.position += state.stride
            if state.position < len(state.plan):
                return
            loop.finish(self.ctx, state)
        state.working, state.memories, state.solver = {}, {}, None
        state.plan, state.position = [], 0
        self.advance(state)

    def advance(self, state: State) -> None:
        """Move to the next stage and free every slot that nobody reads any more."""
        ended = state.stage
        state.done.add(ended)
        state.stage += 1
        for slot, stages in self._touching.items():
            if ended in stages and stages <= state.done:
                state.free(slot)

    def _wanted_after(self, state: State) -> Sequence[str]:
        """The components that the step after the next one needs, or the next stage that needs any."""
        following = state.plan[state.position + 1 : state.position + 2]
        if following:
            return [step.network for step in following]
        behind = self.stages[state.stage + 1 : self._until[state.track]]
        stage = next((stage for stage in behind if stage.uses and not _goes_without(stage, state)), None)
        return () if stage is None else stage.uses[:1] if isinstance(stage, Loop) else stage.uses

    # -- verbs that other engines know ---------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare_encode(self, states: Sequence[State]) -> None:
        """Everything up to and including the plan of the first loop."""
        for state in states:
            while not isinstance(stage := self.stage_of(state), Loop) or self.skip(stage, state):
                assert stage is not None, "this pipeline has no loop"
                if not isinstance(stage, Loop):
                    self.run_stage(stage, state)
            self.begin(stage, state)

    @torch.inference_mode()
    def denoise_step(self, states: Sequence[State]) -> list[dict[str, Tensor]]:
        """The predictions, by branch, of the step each state takes next; states share forwards where they can."""
        rows = [row for state in states for row in self.rows(self._loop(state), state)]
        predictions: dict[str, dict[str, Tensor]] = {state.id: {} for state in states}
        while rows:
            found: dict[str, dict[str, Tensor]] = {}
            for row, prediction in zip(rows, evaluate(self.ctx, rows), strict=True):
                found.setdefault(row.state.id, {})[row.branch] = prediction
            predictions |= found
            again = [state for state in states if state.id in found]
            rows = [row for state in again for row in self.more(self._loop(state), state, found[state.id])]
        return [predictions[state.id] for state in states]

    @torch.inference_mode()
    def step_scheduler(self, states: Sequence[State], predictions: Sequence[dict[str, Tensor]]) -> None:
        """Move each state's latents by its predictions."""
        for state, prediction in zip(states, predictions, strict=True):
            self.apply(self._loop(state), state, prediction)

    @torch.inference_mode()
    def post_decode(self, states: Sequence[State]) -> list[Tensor]:
        """Everything after the first loop, other loops included; returns each state's finished output.

        Of several media that is the one that the model is there for; `made` has all.
        """
        for state in states:
            while not self.finished(state):
                for _ in self.turns(state):
                    self._go_on(state)
        return [state[self.results[self.spec.medium]] for state in states]

    def made(self, state: State) -> dict[str, Any]:
        """What a finished state holds, by medium."""
        found = {medium: state[slot] for medium, slot in self.results.items()}
        return {medium: value for medium, value in found.items() if value is not None}

    def forward(self, request: Request) -> list[Tensor]:
        """A request from prompt to finished outputs, one tensor per output."""
        states = self.states(request)
        self.prepare_encode(states)
        first = self._loop(states[0])
        while self.stage_of(states[0]) is first:
            self.step_scheduler(states, self.denoise_step(states))
        return self.post_decode(states)

    @torch.inference_mode()
    def come_to(self, kind: type[Wanted], state: State) -> Wanted:
        """The first loop of that kind, after everything before it, other loops included, and with its plan."""
        self.prepare_encode([state])
        while not isinstance(loop := self._loop(state), kind):
            while self.stage_of(state) is loop:
                self.step_scheduler([state], self.denoise_step([state]))
            self.prepare_encode([state])
        return loop

    def _go_on(self, state: State) -> None:
        """What the track whose turn it is can do at once: its next stage, or a step of a loop."""
        stage = self.stage_of(state)
        if stage is None or not self.ready(state):
            return
        if not isinstance(stage, Loop):
            self.run_stage(stage, state)
            return
        if not state.plan:
            if self.skip(stage, state):
                return
            self.begin(stage, state)
        self.step_scheduler([state], self.denoise_step([state]))

    def _loop(self, state: State) -> Loop:
        stage = self.stage_of(state)
        assert isinstance(stage, Loop), f"state {state.id} is not in a loop"
        return stage


def check_declaration(name: str, stages: Sequence[Stage], results: Mapping[str, str], spec: Spec) -> None:
    """PipelineError unless reads have earlier writers, slots have one writer, used components exist, every stage has a
    name of its own, and `results` begins with what the spec says that the model makes.
    """
    written: dict[str, str] = {}
    called = set(AROUND)
    for stage in stages:
        label = stage.name or type(stage).__name__
        for slot in stage.reads:
            if slot not in written and slot not in REQUEST_FIELDS:
                raise PipelineError(f"{name}: stage {label} reads {slot!r}, which no earlier stage writes")
        for slot in stage.writes:
            if slot in written or slot in REQUEST_FIELDS:
                raise PipelineError(
                    f"{name}: stage {label} writes {slot!r}, which {written.get(slot, 'the request')} has"
                )
            written[slot] = label
        for component in stage.uses:
            if component not in spec.components:
                raise PipelineError(f"{name}: stage {label} uses {component!r}; the spec has {sorted(spec.components)}")
        if word_of(label) in called:
            raise PipelineError(f"{name}: a stage is called {label!r}, as another one or what is timed around them")
        called.add(word_of(label))
    if stages and (lost := sorted(set(results.values()) - set(written))):
        raise PipelineError(f"{name}: no stage writes the result slot {lost[0]!r}")
    if unknown := sorted(set(results) - set(MEDIA)):
        raise PipelineError(f"{name}: results has the medium {unknown[0]!r}; use {', '.join(MEDIA)}")
    if next(iter(results), None) != spec.medium:
        raise PipelineError(f"{name}: results must begin with {spec.medium!r}, which its spec says it makes")


def touching(stages: Sequence[Stage], results: Collection[str]) -> dict[str, frozenset[int]]:
    """For every slot but the results, the indices of the stages that touch it."""
    found: dict[str, frozenset[int]] = {}
    for index, stage in enumerate(stages):
        for slot in (*stage.reads, *stage.writes):
            if slot not in REQUEST_FIELDS and slot not in results:
                found[slot] = found.get(slot, frozenset()) | {index}
    return found


def joints(name: str, stages: Sequence[Stage], ends: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """For every stage, what it reads that another track writes; PipelineError unless that is a stream."""
    writers = {slot: (index, stage) for index, stage in enumerate(stages) for slot in stage.writes}
    found = []
    for index, stage in enumerate(stages):
        if strange := set(stage.streams) - set(stage.writes):
            raise PipelineError(f"{name}: stage {stage.name} streams {min(strange)!r}, which it does not write")
        track = bisect_right(ends, index)
        across = tuple(
            slot for slot in stage.reads if slot in writers and bisect_right(ends, writers[slot][0]) != track
        )
        for slot in across:
            if slot not in writers[slot][1].streams:
                raise PipelineError(
                    f"{name}: stage {stage.name} reads {slot!r} of another track, which stage {writers[slot][1].name} "
                    "does not stream"
                )
        found.append(across)
    return tuple(found)


def crossing(stages: Sequence[Stage], end: int) -> dict[str, int]:
    """The slots that stages from number `end` on read and earlier ones write, and which stage that is."""
    writers = {slot: index for index, stage in enumerate(stages) for slot in stage.writes}
    read = (slot for stage in stages[end:] for slot in stage.reads)
    return {slot: writers[slot] for slot in read if writers.get(slot, end) < end}


def _goes_without(stage: Stage, state: State) -> bool:
    """Whether a stage that reads nothing but what may come with a prompt, or what to stay away from, has nothing to
    read.
    """
    given, request = set(stage.reads), state.request
    if given == {"negative_prompt"}:
        return request.branches == ONLY_POSITIVE
    return bool(given) and given <= SOURCES and not any(getattr(request, name) for name in given)
