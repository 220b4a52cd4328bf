"""A pipeline of the contract as one of ours: one opaque stage, or the three that its four methods become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from omnimuse.compat.contract.blocks import OwnLoop
from omnimuse.compat.contract.make import Live
from omnimuse.compat.contract.requests import finished, note_times, request_of
from omnimuse.compat.contract.spec import PIPELINE, USUAL_STEPS
from omnimuse.compat.contract.steps import Finish, Prepare, Steps
from omnimuse.compat.contract.surroundings import within
from omnimuse.compat.vllm_omni.diffusion.profiler import DiffusionPipelineProfilerMixin
from omnimuse.compat.vllm_omni.diffusion.worker.request_batch import DiffusionRequestBatch
from omnimuse.core.spec import Spec
from omnimuse.layers.stack import Memory
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class Whole(Stage):
    """From a request to its finished output in one call.

    What the pipeline draws from torch's own generator is the output's, too, and no other request sees that it did.
    """

    medium: str
    uses: tuple[str, ...] = (PIPELINE,)
    name: str = "forward"
    reads: tuple[str, ...] = ("prompt", "negative_prompt", "images", "sounds")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.medium,)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        live: Live = ctx.components[PIPELINE]
        for state in states:
            params = state.request.params
            count = params.num_inference_steps or USUAL_STEPS
            here = replace(live.surroundings, calls=OwnLoop(Memory(steps=count, of=count, cache=params.cache)))
            with within(here), torch.random.fork_rng():
                torch.manual_seed(state.request.seed(state.output))
                request = request_of(state)
                if live.before is not None:
                    request = live.before(request)
                given = DiffusionRequestBatch([request]) if live.batched else request
                if isinstance(live.pipe, DiffusionPipelineProfilerMixin):
                    live.pipe.clear_profiler_records()
                if live.cached is not None:
                    steps = request.sampling_params.num_inference_steps or USUAL_STEPS
                    live.cached.refresh(live.pipe, steps, verbose=False)
                made = live.pipe(given)
                note_times(state, made, live.pipe)
                state[self.medium] = finished(made, live.after, self.medium)


def pipeline_of(spec: Spec, name: str) -> type[Pipeline]:
    """The pipeline of a spec that `spec_of` made of the class `name`."""
    stepped = spec.foreign is not None and spec.foreign.shares
    stages = (Prepare(), Steps(), Finish(spec.medium)) if stepped else (Whole(spec.medium),)
    return type(name, (Pipeline,), {"spec": spec, "stages": stages, "results": {spec.medium: spec.medium}})
