"""The denoising loop, written once for every family.

A family gives four functions (conditions, inputs, token count, guidance); the plan, the solver, the branches, the previews and
the bookkeeping are here. The runner decides which states step together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.guidance import Guidance
from omnimuse.diffusion.solvers import Solver, solver_for
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State


Conditions = Callable[[Context, State, str], Any]
"""(context, state, branch) -> what that branch feeds the network at every step; computed once, when the loop begins."""

Inputs = Callable[[Context, Any, Tensor, Step], Any]
"""(context, conditions, latents, step) -> the network's inputs for one row."""


@dataclass(frozen=True)
class Denoise(Loop):
    """From `noise` to `latents` [C, h, w] float32, by the solver that the checkpoint's scheduler names.

    `token_count(configs, request)` counts the image tokens of one row (the schedule's dynamic shift and the batching budget read
    it); `guidance(request)` says which branches a step needs and combines their predictions; `flip` negates the result
    for networks that predict data - noise. `preview(ctx, latents)` turns an estimate of the clean latents into a small
    picture [3, h, w] in [0, 1].
    """

    network: str
    conditions: Conditions
    inputs: Inputs
    token_count: Callable[[Configs, Request], int]
    guidance: Callable[[Request], Guidance]
    preview: Callable[[Context, Tensor], Tensor]
    flip: bool = False
    embeds: tuple[str, ...] = ("prompt_embeds", "negative_embeds")
    scheduler: str = "scheduler"
    name: str = "denoise"
    writes: tuple[str, ...] = ("latents",)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("noise", *self.embeds)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.network, self.scheduler)

    def solver(self, ctx: Context) -> Solver:
        """What moves the latents: our own solver where it covers the checkpoint's scheduler, else a wrapped one."""
        config = ctx.configs[self.scheduler]
        return solver_for(str(config["_class_name"]), config)[0]

    def begin(self, ctx: Context, state: State) -> list[Step]:
        solver = self.solver(ctx)
        params = state.request.params
        assert params.num_inference_steps is not None
        schedule = solver.plan(params.num_inference_steps, self.token_count(ctx.configs, state.request))
        steps = [self._step(state.request, i, t, schedule.sigmas) for i, t in enumerate(schedule.timesteps)]
        branches = sorted({branch for step in steps for branch in step.branches}, reverse=True)
        state.solver = solver.start(schedule)
        state.working["schedule"] = schedule
        state.working["solver"] = solver
        state.working["conditions"] = {branch: self.conditions(ctx, state, branch) for branch in branches}
        state["latents"] = solver.scale_noise_start(state.solver, state["noise"])
        return steps

    def _step(self, request: Request, index: int, timestep: float, sigmas: tuple[float, ...]) -> Step:
        scale = float(request.params.guidance_scale or 0.0)
        branches = self.guidance(request).branches(scale, timestep)
        return Step(index, timestep, sigmas[index], sigmas[index + 1], self.network, branches, scale)

    def tokens(self, ctx: Context, request: Request) -> int:
        return self.token_count(ctx.configs, request) * len(
            self._step(request, 0, 1000.0, (1.0, 0.0)).branches
        )

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        latents = state["latents"]
        solver, schedule = state.working["solver"], state.working["schedule"]
        scaled = solver.scale_input(state.solver, step.index, schedule, latents)
        return [
            Row(
                state=state,
                branch=branch,
                network=step.network,
                inputs=self.inputs(ctx, state.working["conditions"][branch], scaled, step),
                tokens=self.token_count(ctx.configs, state.request),
                shape=tuple(latents.shape),
                memory=state.memory(step.network, branch),
            )
            for branch in step.branches
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        prediction = self.guidance(state.request).combine(predictions, step.scale)
        prediction = -prediction if self.flip else prediction
        solver, schedule, latents = state.working["solver"], state.working["schedule"], state["latents"]
        if state.request.previews:
            state.working["estimate"] = solver.denoised(step.index, schedule, latents, prediction)
        state["latents"] = solver.step(
            state.solver, step.index, schedule, latents, prediction, state.generator
        )

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        estimate = state.working.get("estimate")
        return None if estimate is None else self.preview(ctx, estimate)
