"""Each stage of a composed pipeline as one of ours: those that run once, and the loop, which the engine owns.

Letters: B outputs that share a call.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from omnimuse.compat.composed.make import Live
from omnimuse.compat.composed.requests import finished, packed, request_of, unpacked
from omnimuse.compat.composed.spec import NETWORK, PIPELINE
from omnimuse.compat.contract.blocks import Calls
from omnimuse.compat.contract.steps import TOKEN
from omnimuse.compat.contract.surroundings import within
from omnimuse.compat.diffusers.call import Call
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import OutputBatch, Req
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.decoding import DecodingStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.denoising import (
    POSITIVE,
    DenoisingStage,
    Evaluation,
    branches_of,
)
from omnimuse.compat.sglang.runtime.pipelines_core.stages.image_encoding import (
    ImageEncodingStage,
    ImageVAEEncodingStage,
)
from omnimuse.compat.sglang.runtime.pipelines_core.stages.text_encoding import TextEncodingStage
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Request
from omnimuse.core.spec import Spec
from omnimuse.layers.network import Network
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.observe.labels import MADE, OTHER, PICTURE, SEEN, STEPS, TEXT, apart
from omnimuse.pipeline.decode import PREVIEW_SIDE, shrunk
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State

BATCH, STAGES = "batch", "stages"
"""The slots: what stages hand on, and the output's own stages."""

LOOP = "denoise"
"""What the loop is called wherever time and steps are told, as in every pipeline of ours."""

LABELS: Mapping[type[PipelineStage], str] = {
    TextEncodingStage: TEXT,
    ImageEncodingStage: SEEN,
    ImageVAEEncodingStage: PICTURE,
    DenoisingStage: STEPS,
    DecodingStage: MADE,
}
"""What stages are called in measurements, by the guide's class from which they derive."""


class Denoiser(Network):
    """The networks of a pipeline's loop: a row is one `Evaluation`. Calls of one network with alike shapes are one.

    Where they are `cached`, each row is a call of its own: which rows of a network's are whose, only that knows.
    """

    packing: ClassVar = "pad"

    def __init__(self, live: Live, cached: bool) -> None:
        super().__init__()
        self._live = (live,)  # in a tuple, so that its networks are not counted as parts of this one
        self.cached = cached

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        raise ModelError("a composed pipeline is made by its door, not from a configuration")

    def forward(self, rows: Sequence[Evaluation], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        [live] = self._live
        alone = self.cached and memories is not None
        groups: dict[Hashable, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(place if alone or row.kind is None else row.kind, []).append(place)
        found: dict[int, Tensor] = {}
        with within(live.surroundings) as here:
            for places in groups.values():
                here.calls = Calls(memories[places[0]]) if alone and memories is not None else None
                found |= zip(places, predicted([rows[place] for place in places]), strict=True)
        return [found[place] for place in range(len(rows))]

    def stacks(self) -> dict[str, BlockStack]:
        return {}


def predicted(rows: Sequence[Evaluation]) -> list[Tensor]:
    """The predictions of rows of one kind, in order."""
    if len(rows) == 1:
        return [rows[0].alone()]
    given = {name: _stacked([row.given[name] for row in rows]) for name in rows[0].given}
    steps = {row.step for row in rows}
    made = rows[0].called(given, steps.pop() if len(steps) == 1 else -1)
    return [row.done(each) for row, each in zip(rows, made.split(1), strict=True)]


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.shape[:1] == (1,) else first
    if isinstance(first, list | tuple):
        return type(first)(_stacked(each) for each in zip(*values, strict=True))
    return first


@dataclass(frozen=True)
class Once(Stage):
    """A stage that runs once: number `number` of the pipeline; the first takes the request, the last gives the output.

    What it draws from torch's own generator is the output's.
    """

    number: int
    medium: str
    name: str = ""
    last: bool = False
    label: str = OTHER
    uses: tuple[str, ...] = (PIPELINE,)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (BATCH, STAGES) if self.number else ("prompt", "negative_prompt", "images")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(() if self.number else (BATCH, STAGES)), *((self.medium,) if self.last else ()))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        live: Live = ctx.components[PIPELINE]
        for state in states:
            with within(live.surroundings), torch.random.fork_rng():
                torch.manual_seed(state.request.seed(state.output) + self.number)
                if not self.number:
                    state[BATCH], state[STAGES] = packed(request_of(live, state, self.medium)), live.own_stages()
                stage: PipelineStage = state[STAGES][self.number]
                made = stage(unpacked(state[BATCH]), live.args)
                if self.last:
                    state[self.medium] = finished(made, self.medium)
                else:
                    keep(state, made, self.name)


def keep(state: State, made: Any, name: str) -> None:
    """Leave what a stage gave for the next one, in the slot that is there."""
    if not isinstance(made, Req | OutputBatch):
        raise ModelError(f"stage {name} returned a {type(made).__name__}; it must return its batch, or an OutputBatch")
    state[BATCH][:] = packed(made)


def _apart(value: Any) -> Any:
    """A list or a dict whose entries may be changed without anybody noticing; anything else as it is."""
    return copy.copy(value) if isinstance(value, list | dict) else value


def tokens_of(request: Request) -> int:
    """The row tokens of a step of one output, by its pixels."""
    p = request.params
    pixels = (p.height or 720) * (p.width or 1280) * (p.num_frames or 1)
    scale = p.guidance_scale if p.true_cfg_scale is None else p.true_cfg_scale
    return max(1, pixels // TOKEN) * (2 if (scale or 1.0) > 1.0 else 1)


@dataclass(frozen=True)
class Denoise(Loop):
    """The loop: the stage prepares it, says what its networks are called for, and moves the latents."""

    number: int
    stage: str
    uses: tuple[str, ...] = (NETWORK, PIPELINE)
    name: str = LOOP
    reads: tuple[str, ...] = (BATCH, STAGES)
    writes: tuple[str, ...] = ()

    def tokens(self, ctx: Context, request: Request) -> int:
        return tokens_of(request)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        live, stage, batch = self._of(ctx, state)
        with within(live.surroundings):
            stage.verified(stage.verify_input(batch, live.args), "before")
            prepared = stage._prepare_denoising_loop(batch, live.args)
        state.working["prepared"] = prepared
        timesteps = stage.numbers(prepared)
        if not timesteps:
            raise ModelError(f"{self.stage} has no timesteps; a stage before it must set batch.timesteps")
        branches = branches_of(batch) if stage.parted else (POSITIVE,)
        return [Step(index, t, network=NETWORK, branches=branches) for index, t in enumerate(timesteps)]

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        live, stage, batch = self._of(ctx, state)
        with within(live.surroundings):
            wanted = stage.evaluations(batch, live.args, state.working["prepared"], step.index)
        shape = tuple(state.working["prepared"]["latents"].shape)
        tokens = max(1, self.tokens(ctx, state.request) // len(wanted))
        return [
            Row(state, branch, NETWORK, each, tokens, shape, state.memory(NETWORK, branch))
            for branch, each in wanted.items()
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        live, stage, batch = self._of(ctx, state)
        with within(live.surroundings):
            stage.take_step(batch, state.working["prepared"], step.index, predictions)

    def finish(self, ctx: Context, state: State) -> None:
        live, stage, batch = self._of(ctx, state)
        with within(live.surroundings):
            stage.finish(batch, live.args, state.working["prepared"])
            stage.verified(stage.verify_output(batch, live.args), "after")

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        """The unfinished latents through all later stages, made small; of what is no picture nothing is shown."""
        if ctx.spec.medium != "image":
            return None
        live, _, batch = self._of(ctx, state)
        stages = [copy.copy(each) for each in state[STAGES][self.number :]]
        made = unpacked([type(batch), {name: _apart(value) for name, value in vars(batch).items()}])
        prepared = {name: _apart(value) for name, value in state.working["prepared"].items()}
        assert isinstance(stages[0], DenoisingStage)
        with within(live.surroundings):
            stages[0].finish(made, live.args, prepared)
            for stage in stages[1:]:
                made = stage(made, live.args)
        picture = finished(made, "image")
        return shrunk(picture, PREVIEW_SIDE)

    def _of(self, ctx: Context, state: State) -> tuple[Live, DenoisingStage, Any]:
        stage = state[STAGES][self.number]
        assert isinstance(stage, DenoisingStage)
        return ctx.components[PIPELINE], stage, unpacked(state[BATCH])


@dataclass(frozen=True)
class Driven(Loop):
    """A denoising stage with a `forward` of its own, as a call that stands still wherever its bar is updated."""

    number: int
    stage: str
    uses: tuple[str, ...] = (PIPELINE,)
    name: str = LOOP
    reads: tuple[str, ...] = (BATCH, STAGES)
    writes: tuple[str, ...] = ()

    def tokens(self, ctx: Context, request: Request) -> int:
        return tokens_of(request)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        live: Live = ctx.components[PIPELINE]
        stage, batch = state[STAGES][self.number], unpacked(state[BATCH])

        def work() -> Any:
            with within(live.surroundings):
                return stage(batch, live.args)

        call = state.working["call"] = Call(work)
        call.go_on()
        return [Step(index) for index in range(max(1, call.total))]

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        call: Call = state.working["call"]
        if step.index and not call.dead:
            call.go_on()
        if call.dead:
            del state.plan[step.index + 1 :]  # it took fewer steps than it had said

    def finish(self, ctx: Context, state: State) -> None:
        call: Call = state.working["call"]
        while not call.dead:
            call.go_on()
        keep(state, call.result, self.stage)


def pipeline_of(spec: Spec, live: Live) -> type[Pipeline]:
    """The pipeline of a spec that `spec_of` made: one stage of ours for each of its own."""
    last, loops = len(live.stages) - 1, [name for name, each in live.stages.items() if isinstance(each, DenoisingStage)]
    if len(loops) > 1:
        raise ModelError(f"{spec.arch} has {len(loops)} denoising stages, and one is taken: {', '.join(loops)}")
    stages: list[Stage] = []
    called = apart(live.stages, (LOOP,))
    for number, (name, stage) in enumerate(live.stages.items()):
        if isinstance(stage, DenoisingStage) and 0 < number < last:
            stages.append(Denoise(number, name) if stage.stock else Driven(number, name))
        else:
            label = next((each for kind, each in LABELS.items() if isinstance(stage, kind)), OTHER)
            stages.append(Once(number, spec.medium, called[name], number == last, label))
    return type(spec.arch, (Pipeline,), {"spec": spec, "stages": tuple(stages), "results": {spec.medium: spec.medium}})
