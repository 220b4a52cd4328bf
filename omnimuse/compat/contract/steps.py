"""The four methods of a pipeline of the contract as stages of ours: encode, a loop that the engine owns, decode.

Requests between two steps are what the contract calls a state; those alike in guidance and shapes take a step in one
forward. h w sides in pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from omnimuse.compat.contract.blocks import Calls
from omnimuse.compat.contract.make import Live
from omnimuse.compat.contract.requests import finished, note_parts, note_times, request_of
from omnimuse.compat.contract.spec import NETWORK, PIPELINE
from omnimuse.compat.contract.surroundings import within
from omnimuse.compat.vllm_omni.diffusion.profiler import DiffusionPipelineProfilerMixin
from omnimuse.compat.vllm_omni.diffusion.worker.input_batch import InputBatch, company
from omnimuse.compat.vllm_omni.diffusion.worker.utils import StepRequestState
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Request
from omnimuse.layers.network import Network
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.parallel.mesh import BRANCHES
from omnimuse.pipeline.decode import PREVIEW_SIDE, shrunk
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State

TOKEN = 16 * 16
"""Pixels, over frames, that count as one token: such a pipeline tells nobody how many it computes."""


class StepNetwork(Network):
    """`denoise_step` as a network: a row is a request between two steps, and its prediction.

    Where it is `cached`, each request takes its steps alone: which rows of a network's are whose, only that knows.
    """

    packing: ClassVar = "pad"

    def __init__(self, live: Live, cached: bool) -> None:
        super().__init__()
        self._live = (live,)  # in a tuple, so that its networks are not counted as parts of this one
        self.cached = cached

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        raise ModelError("a pipeline of the contract is made by its door, not from a configuration")

    def forward(self, rows: Sequence[StepRequestState], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        groups: dict[Hashable, list[StepRequestState]] = {}
        alone = {} if memories is None or not self.cached else dict(zip(map(id, rows), memories, strict=True))
        for row in rows:
            groups.setdefault(company(row) if self._batches and not alone else id(row), []).append(row)
        for group in groups.values():
            memory = alone.get(id(group[0]))
            found |= zip(map(id, group), self._predicted(group, memory), strict=True)
        return [found[id(row)] for row in rows]

    def stacks(self) -> dict[str, BlockStack]:
        return {}

    def _predicted(self, states: Sequence[StepRequestState], memory: Memory | None) -> Sequence[Tensor]:
        [live] = self._live
        live.surroundings.calls = None if memory is None else Calls(memory)
        steps = {state.step_index for state in states}
        live.surroundings.step = steps.pop() if len(steps) == 1 else None
        pipe: Any = live.pipe
        with within(live.surroundings):
            made = pipe.denoise_step(InputBatch.make_batch(states) if self._batches else states[0])
        if not isinstance(made, Tensor):
            raise ModelError(f"denoise_step returned a {type(made).__name__}; here it must be one tensor")
        counts = [0 if state.latents is None else state.latents.shape[0] for state in states]
        return made.split(counts)

    @cached_property
    def _batches(self) -> bool:
        """Whether `denoise_step` takes a batch; in an older form it took one request."""
        [live] = self._live
        pipe: Any = live.pipe
        first = next(iter(signature(pipe.denoise_step).parameters))
        return first not in ("state", "request_state")


@dataclass(frozen=True)
class Prepare(Stage):
    """`prepare_encode`, after the function before it: a request that is ready for its first step.

    What it draws from torch's own generator is the output's.
    """

    uses: tuple[str, ...] = (PIPELINE,)
    name: str = "encode prompt"
    reads: tuple[str, ...] = ("prompt", "negative_prompt", "images", "sounds")
    writes: tuple[str, ...] = ("request",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        live: Live = ctx.components[PIPELINE]
        pipe: Any = live.pipe
        for state in states:
            with within(live.surroundings), torch.random.fork_rng():
                torch.manual_seed(state.request.seed(state.output))
                request = request_of(state)
                if live.before is not None:
                    request = live.before(request)
                fresh = StepRequestState(
                    request_id=state.id, sampling=request.sampling_params, prompt=request.prompts[0]
                )
                if profiled := isinstance(pipe, DiffusionPipelineProfilerMixin):
                    pipe.clear_profiler_records()  # of those that were drawn before
                prepared = pipe.prepare_encode(fresh)
                if profiled:
                    note_parts(state, pipe.stage_durations, (Steps.name,))
                state["request"] = fresh if prepared is None else prepared


@dataclass(frozen=True)
class Steps(Loop):
    """`denoise_step` for all that step together, and `step_scheduler` for each.

    Where ranks share the branches of guidance, each calls it for every request, and its mixin exchanges what they made.
    """

    uses: tuple[str, ...] = (NETWORK, PIPELINE)
    name: str = "denoise"
    reads: tuple[str, ...] = ("request",)
    writes: tuple[str, ...] = ("stepped",)

    def tokens(self, ctx: Context, request: Request) -> int:
        p = request.params
        pixels = (p.height or 1024) * (p.width or 1024) * (p.num_frames or 1)
        return max(1, pixels // TOKEN) * (1 if request.negative_prompt is None else 2)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        theirs = state["stepped"] = state["request"]
        if not theirs.total_steps:
            raise ModelError("prepare_encode left no timesteps; it must set state.timesteps")
        both = ("positive", "negative") if ctx.mesh.axis(BRANCHES).size > 1 else ("positive",)
        return [Step(index, network=NETWORK, branches=both) for index in range(theirs.total_steps)]

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        theirs: StepRequestState = state["stepped"]
        shape = tuple(theirs.latents.shape) if theirs.latents is not None else ()
        tokens = self.tokens(ctx, state.request)
        return [
            Row(state, branch, NETWORK, theirs, tokens, shape, state.memory(NETWORK, branch))
            for branch in step.branches
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        live, theirs = ctx.components[PIPELINE], state["stepped"]
        with within(live.surroundings):
            live.pipe.step_scheduler(theirs, predictions["positive"])
        if theirs.step_index != step.index + 1:
            raise ModelError(
                f"step_scheduler left state.step_index at {theirs.step_index} after step {step.index + 1}; it must "
                "count every step"
            )

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        """The unfinished latents, decoded whole and made small; of what is no picture nothing is shown."""
        if ctx.spec.medium != "image":
            return None
        live, theirs = ctx.components[PIPELINE], copy.copy(state["stepped"])
        with within(live.surroundings):
            picture = finished(live.pipe.post_decode(theirs), live.after, "image")
        return shrunk(picture, PREVIEW_SIDE)


@dataclass(frozen=True)
class Finish(Stage):
    """`post_decode`, and the function after it."""

    medium: str
    uses: tuple[str, ...] = (PIPELINE,)
    name: str = "decode"
    reads: tuple[str, ...] = ("stepped",)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.medium,)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        live: Live = ctx.components[PIPELINE]
        pipe: Any = live.pipe
        for state in states:
            if isinstance(pipe, DiffusionPipelineProfilerMixin):
                pipe.clear_profiler_records()  # of all that have stepped together
            with within(live.surroundings):
                made = pipe.post_decode(state["stepped"])
                note_times(state, made, pipe, (Steps.name,))
                state[self.medium] = finished(made, live.after, self.medium)
