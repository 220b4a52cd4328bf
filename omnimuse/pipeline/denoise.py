"""The denoising loop, written once for every family.

A family gives a few functions (conditions, inputs, token count); the plan, the solver, the branches, the
previews and the bookkeeping are here. Experts with a boundary, distilled schedules and truncated guidance are other
plans, not other loops. The runner decides which states step together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from omnimuse.core.guidance import BOTH, ONLY_POSITIVE
from omnimuse.core.params import ScheduleParams
from omnimuse.core.request import Picture, Region, Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.choice import chosen_config, solver_for
from omnimuse.diffusion.guidance import combine, elapsed
from omnimuse.diffusion.schedules import Mu, Spacing
from omnimuse.diffusion.solvers import Solver, flow_noised
from omnimuse.pipeline.region import cells_anew, shares_anew
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State

Conditions = Callable[[Context, State, str, str], Any]
"""(context, state, network, branch) -> what that branch feeds that network at every step; made when the loop begins."""

Inputs = Callable[[Context, Any, Tensor, Tensor], Any]
"""(context, conditions, latents, timestep []) -> the network's inputs for one row; all tensors are on the device."""

Expert = Callable[[Context, Request, float], str]
"""(context, request, timestep) -> the network that evaluates that step."""

UNCHANGED = ScheduleParams()
"""The noise falls as the checkpoint says."""


@runtime_checkable
class OneSequence(Protocol):
    """Conditions whose text stands in one sequence with the latents, so that its tokens cost as much."""

    @property
    def text_tokens(self) -> int: ...


@dataclass(frozen=True)
class Denoise(Loop):
    """From `noise` to `latents` (float32, the shape of the noise), by the solver that the checkpoint's scheduler names.

    `token_count(configs, request)` counts the latent tokens of one row: dynamic shifts and the batching budget read it.
    Which branches a step evaluates, and how their predictions combine, the spec's guidance says; `flip` negates the
    result for networks that predict data - noise. `preview(ctx, latents)` turns an estimate of the clean latents into a
    small picture [3, h, w] in [0, 1]. With several `networks`, `expert` picks one per step. The conditions read what
    the texts of every branch became (`texts`, of which each branch has its own), and the slots `given`. Latents in the
    slot `start` stand in for what the request's skipped steps would have drawn; outside a request's region they are
    put back, as noisy as the rest, after every evaluation. `mu(tokens, steps)` is the family's own rule for a shift
    that follows the size, where it has one.
    """

    conditions: Conditions
    inputs: Inputs
    token_count: Callable[[Configs, Request], int]
    preview: Callable[[Context, Tensor], Tensor]
    networks: tuple[str, ...] = ("transformer",)
    expert: Expert | None = None
    flip: bool = False
    spacing: Spacing = "linear"
    mu: Mu | None = None
    texts: tuple[str, ...] = ("embeds",)
    branches: tuple[str, ...] = BOTH
    given: tuple[str, ...] = ()
    start: str | None = None
    scheduler: ClassVar[str] = "scheduler"
    looks: ClassVar[tuple[str, ...]] = ("vae",)
    name: str = "denoise"
    writes: tuple[str, ...] = ("latents",)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        texts = (f"{branch}_{text}" for branch in self.branches for text in self.texts)
        return ("noise", *texts, *self.given, *((self.start, "images", "region") if self.start else ()))

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.networks, self.scheduler)

    def solver(self, configs: Configs, chosen: ScheduleParams = UNCHANGED) -> tuple[Solver, str]:
        """What moves the latents, and why: our own if it covers the checkpoint's scheduler, else a wrapped one.

        `chosen` is what a request has in place of the checkpoint's choices. A scheduler that is no flow matching by
        name chooses its levels by itself if it was chosen so, as in the reference pipelines that take several.
        """
        config = chosen_config(configs[self.scheduler], chosen)
        name = str(config["_class_name"])
        own = chosen.scheduler is None or name == configs[self.scheduler]["_class_name"] or name.startswith("FlowMatch")
        return solver_for(name, config, self.spacing if own else "scheduler", self.mu)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        solver, _ = self.solver(ctx.configs, state.request.params)
        steps_wanted = state.request.params.num_inference_steps
        assert steps_wanted is not None
        schedule = solver.plan(steps_wanted, self.token_count(ctx.configs, state.request))
        steps = [self._step(ctx, state.request, i, t, schedule.sigmas) for i, t in enumerate(schedule.timesteps)]
        state.solver = solver.start(schedule)
        first = 0
        if self.start and (clean := state[self.start]) is not None:
            skipped = state.request.skipped_steps
            state["latents"], first = solver.start_late(state.solver, skipped, schedule, clean, state["noise"])
            state.working["anew"] = self._anew(ctx, state, clean)
        else:
            state["latents"] = solver.scale_noise_start(state.solver, state["noise"])
        needed = dict.fromkeys((step.network, branch) for step in steps[first:] for branch in step.branches)
        state.working["solver"], state.working["schedule"] = solver, schedule
        # Once for all steps: a step that uploaded its own would make the host wait.
        state.working["timesteps"] = torch.tensor(schedule.timesteps, dtype=torch.float32, device=ctx.device)
        # The first step's network last: where networks take turns on the device, it is the one that stays.
        conditions = {each: self.conditions(ctx, state, *each) for each in reversed(needed)}
        latents = self.token_count(ctx.configs, state.request)
        beside = {each: c.text_tokens if isinstance(c, OneSequence) else 0 for each, c in conditions.items()}
        state.working["tokens"] = {each: latents + text for each, text in beside.items()}
        state.working["conditions"] = conditions
        return steps[first:]

    def tokens(self, ctx: Context, request: Request) -> int:
        levels = (1.0,) * ((request.params.num_inference_steps or 1) + 1)
        ends = (self._step(ctx, request, 0, timestep, levels) for timestep in (1000.0, 0.0))
        return self.token_count(ctx.configs, request) * max(len(step.branches) for step in ends)

    def cost(self, ctx: Context, state: State) -> int:
        step = state.plan[state.position]
        return sum(state.working["tokens"][step.network, branch] for branch in step.branches)

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        latents, conditions = state["latents"], state.working["conditions"]
        solver, schedule = state.working["solver"], state.working["schedule"]
        timestep = state.working["timesteps"][step.index]  # []
        scaled = solver.scale_input(state.solver, step.index, schedule, latents)
        return [
            Row(
                state=state,
                branch=branch,
                network=step.network,
                inputs=self.inputs(ctx, conditions[step.network, branch], scaled, timestep),
                tokens=state.working["tokens"][step.network, branch],
                shape=tuple(latents.shape),
                memory=state.memory(step.network, branch),
            )
            for branch in step.branches
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        prediction = self.combined(ctx, state, step, predictions)
        prediction = -prediction if self.flip else prediction
        solver, schedule, latents = state.working["solver"], state.working["schedule"], state["latents"]
        if state.request.previews:
            estimate = solver.denoised(step.index, schedule, latents, prediction)
            state.working["estimate"] = None if estimate is None else self._confined(state, estimate, 0.0)
        moved = solver.step(state.solver, step.index, schedule, latents, prediction, state.generator)
        state["latents"] = self._confined(state, moved, schedule.sigmas[step.index + 1])

    def combined(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> Tensor:
        """One prediction from those of the branches that the step evaluated, float32."""
        return combine(ctx.spec.guidance, state.request.extra, predictions, step.scale)

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        estimate = state.working.get("estimate")
        return None if estimate is None else self.preview(ctx, estimate)

    def _anew(self, ctx: Context, state: State, clean: Tensor) -> Tensor | None:
        """Which cells of latents like `clean` [C, h, w] are drawn anew, as `shares` has them; None: all.

        So of a family that fills in: its network sees what is to be kept.
        """
        region = state["region"]
        if region is None or ctx.spec.fills:
            return None
        cells = (clean.shape[-2], clean.shape[-1])
        return self.shares(state["images"][0], region, state.request.size, cells).to(clean.device)

    def shares(self, picture: Picture, region: Region, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        """Which of these cells are drawn anew, bool [h, w], or how much of each, float32."""
        return cells_anew(picture, region, size, cells)

    def _confined(self, state: State, latents: Tensor, sigma: float) -> Tensor:
        """`latents` at the noise level `sigma`, and outside the region what is known of them there."""
        if (anew := state.working.get("anew")) is None or self.start is None:
            return latents
        known = flow_noised(state[self.start], state["noise"], sigma).to(latents.dtype)
        return torch.where(anew, latents, known) if anew.dtype == torch.bool else (1 - anew) * known + anew * latents

    def _step(self, ctx: Context, request: Request, index: int, timestep: float, sigmas: tuple[float, ...]) -> Step:
        network = self.networks[0] if self.expert is None else self.expert(ctx, request, timestep)
        rule = ctx.spec.guidance
        if rule is None:
            return Step(index, timestep, sigmas[index], sigmas[index + 1], network, ONLY_POSITIVE)
        scale = rule.scale(request.params, self.networks.index(network))
        place = (index, len(sigmas) - 1)
        branches = rule.branches(request.branches, request.extra, scale, elapsed(timestep), place)
        return Step(index, timestep, sigmas[index], sigmas[index + 1], network, branches, scale)


@dataclass(frozen=True)
class DenoiseBlended(Denoise):
    """The same, where a cell on the edge of a region is drawn anew in part, as the pixels around its middle say."""

    def shares(self, picture: Picture, region: Region, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
        return shares_anew(picture, region, size, cells)
