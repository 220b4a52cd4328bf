"""Solvers: how a prediction moves the latents from one noise level to the next.

`FlowEuler` is our own; `DiffusersSolver` wraps any other scheduler class that a checkpoint names. Both keep
what they must remember in a `SolverMemory` of one state: states never disturb one another and can be paused.
Called by the denoising loop. Must not know a model; takes random numbers only from the generator it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.diffusion.schedules import FlowSchedule, Schedule, linear_sigmas, unsupported

FLOW_EULER = "FlowMatchEulerDiscreteScheduler"

Spacing = Literal["linear", "linear64", "scheduler"]
"""Who chooses a flow solver's levels before shifting: we (1 down to 1/steps, spaced in float32 or in float64), or the
scheduler that the checkpoint names."""


class SolverMemory(Protocol):
    """What a solver remembers about one state between steps. Can be deep-copied."""

    def to(self, device: torch.device | str) -> None:
        """Moves the remembered tensors, in place."""
        ...


class Solver(Protocol):
    """The contract. A solver is shared by all states and holds nothing of theirs."""

    def plan(self, steps: int, tokens: int) -> Schedule:
        """The schedule for `steps` steps over `tokens` latent tokens."""
        ...

    def start(self, schedule: Schedule) -> SolverMemory:
        """Fresh memory for one state that will follow `schedule`."""
        ...

    def scale_noise_start(self, memory: SolverMemory, noise: Tensor) -> Tensor:
        """Unit noise -> the sample that evaluation 0 starts from."""
        ...

    def scale_input(self, memory: SolverMemory, index: int, schedule: Schedule, sample: Tensor) -> Tensor:
        """What the network sees of the sample at evaluation `index`."""
        ...

    def step(
        self,
        memory: SolverMemory,
        index: int,
        schedule: Schedule,
        sample: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The sample after evaluation `index`. Evaluations come in order, each exactly once."""
        ...

    def denoised(self, index: int, schedule: Schedule, sample: Tensor, prediction: Tensor) -> Tensor | None:
        """The clean sample that this prediction points at, for previews; None if this solver cannot tell."""
        ...


def flow_euler(sample: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One Euler step along the velocity, in float32, cast to the velocity's dtype; all shapes equal."""
    levels = torch.tensor([sigma, sigma_next], dtype=torch.float32)
    # The 0-d step takes the velocity's dtype in the product, as in the reference.
    return (sample.to(torch.float32) + (levels[1] - levels[0]) * velocity).to(velocity.dtype)


def flow_denoised(sample: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Where a straight line along the velocity meets sigma 0; float32."""
    return sample.float() - sigma * velocity.float()


@dataclass
class NoMemory:
    """The memory of a solver that remembers nothing."""

    def to(self, device: torch.device | str) -> None:
        """There is nothing to move."""


@dataclass(frozen=True)
class FlowEuler:
    """Flow matching by Euler's method (velocity predictions), on a `FlowSchedule`; for `double` see `linear_sigmas`."""

    levels: FlowSchedule = field(default_factory=FlowSchedule)
    double: bool = False

    def plan(self, steps: int, tokens: int) -> Schedule:
        """One evaluation per step."""
        return self.levels.plan(steps, tokens, double=self.double)

    def start(self, schedule: Schedule) -> NoMemory:
        """Euler's method remembers nothing."""
        return NoMemory()

    def scale_noise_start(self, memory: SolverMemory, noise: Tensor) -> Tensor:
        """Sigma starts at 1: the noise itself."""
        return noise

    def scale_input(self, memory: SolverMemory, index: int, schedule: Schedule, sample: Tensor) -> Tensor:
        """The sample itself."""
        return sample

    def step(
        self,
        memory: SolverMemory,
        index: int,
        schedule: Schedule,
        sample: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """`flow_euler`; draws nothing."""
        return flow_euler(sample, prediction, schedule.sigmas[index], schedule.sigmas[index + 1])

    def denoised(self, index: int, schedule: Schedule, sample: Tensor, prediction: Tensor) -> Tensor:
        """`flow_denoised`."""
        return flow_denoised(sample, prediction, schedule.sigmas[index])


@dataclass
class SchedulerMemory:
    """One diffusers scheduler object, ready to step, and the next evaluation's index.

    `tables` names the tensors that the schedule consists of: they stay on the CPU wherever the sample is.
    """

    scheduler: Any
    position: int = 0
    tables: frozenset[str] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        self.tables = frozenset(name for name, value in vars(self.scheduler).items() if isinstance(value, Tensor))

    def to(self, device: torch.device | str) -> None:
        """Moves what the scheduler has gathered while stepping."""
        for name, value in list(vars(self.scheduler).items()):
            if name not in self.tables:
                setattr(self.scheduler, name, _moved(value, device))


@dataclass(frozen=True)
class DiffusersSolver:
    """A diffusers scheduler class by name and config; every state gets an object of its own.

    `spacing` matters to flow solvers that accept levels: most pipelines hand them over, some let the
    scheduler choose.
    """

    class_name: str
    config: Mapping[str, Any]
    spacing: Spacing = "linear"

    def __post_init__(self) -> None:
        self._create()

    def plan(self, steps: int, tokens: int) -> Schedule:
        """As the scheduler's `set_timesteps` says; second-order methods evaluate more often than `steps`."""
        scheduler = self._ready(steps, tokens)
        timesteps = tuple(float(t) for t in scheduler.timesteps)
        return Schedule(timesteps, _levels(scheduler, timesteps), steps, tokens)

    def start(self, schedule: Schedule) -> SchedulerMemory:
        """A scheduler object set up for this schedule."""
        return SchedulerMemory(self._ready(schedule.steps, schedule.tokens))

    def scale_noise_start(self, memory: SolverMemory, noise: Tensor) -> Tensor:
        """Times the scheduler's `init_noise_sigma`, if it has one."""
        scheduler = _of(memory).scheduler
        return noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise

    def scale_input(self, memory: SolverMemory, index: int, schedule: Schedule, sample: Tensor) -> Tensor:
        """The scheduler's `scale_model_input`, if it has one. Comes before `step`; may be called again."""
        scheduler = _of(memory).scheduler
        if not hasattr(scheduler, "scale_model_input"):
            return sample
        return scheduler.scale_model_input(sample, scheduler.timesteps[index])

    def step(
        self,
        memory: SolverMemory,
        index: int,
        schedule: Schedule,
        sample: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The scheduler's `step`, given the state's generator if it takes one."""
        own = _of(memory)
        assert own.position == index, f"evaluation {index} was asked for, {own.position} is next"
        options = {"generator": generator} if "generator" in _parameters(own.scheduler.step) else {}
        timestep = own.scheduler.timesteps[index]
        moved = own.scheduler.step(prediction, timestep, sample, return_dict=False, **options)[0]
        own.position += 1
        return moved

    def denoised(self, index: int, schedule: Schedule, sample: Tensor, prediction: Tensor) -> Tensor | None:
        """Known for velocity predictions only."""
        return flow_denoised(sample, prediction, schedule.sigmas[index]) if self._is_flow() else None

    def _is_flow(self) -> bool:
        predicts = self.config.get("prediction_type", "")
        return self.class_name.startswith("FlowMatch") or predicts == "flow_prediction"

    def _ready(self, steps: int, tokens: int) -> Any:
        scheduler = self._create()
        accepted = _parameters(scheduler.set_timesteps)
        options: dict[str, Any] = {}
        if "mu" in accepted and scheduler.config.get("use_dynamic_shifting"):
            options["mu"] = FlowSchedule.from_config(scheduler.config).mu(tokens)
        if "sigmas" in accepted and self.spacing != "scheduler" and self._is_flow():
            exact = np.linspace(1.0, 1 / steps, steps)
            levels = exact if self.spacing == "linear64" else linear_sigmas(steps).astype(np.float64)
            scheduler.set_timesteps(sigmas=levels, **options)
        else:
            scheduler.set_timesteps(steps, **options)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler

    def _create(self) -> Any:
        kind = _scheduler_class(self.class_name)
        try:
            scheduler = kind.from_config(dict(self.config))
        except (ImportError, ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(f"the scheduler {self.class_name} refuses its config: {error}") from error
        if scheduler.config.get("noise_sampler_seed", 0) is None:
            raise ModelError(
                f"{self.class_name} would draw noise nobody can repeat; set noise_sampler_seed in its config"
            )
        return scheduler


def solver_for(class_name: str, config: Mapping[str, Any], spacing: Spacing = "linear") -> tuple[Solver, str]:
    """The solver for a checkpoint's scheduler, and the reason in words. ModelError: an unknown class."""
    if class_name != FLOW_EULER:
        return DiffusersSolver(class_name, config, spacing), f"diffusers' {class_name}, which the checkpoint names"
    option = unsupported(config) or ("levels that the scheduler chooses" if spacing == "scheduler" else None)
    if option is not None:
        wrapped = DiffusersSolver(class_name, config, spacing)
        return wrapped, f"diffusers' {class_name}, because our flow Euler does not cover {option}"
    solver = FlowEuler(FlowSchedule.from_config(config), double=spacing == "linear64")
    return solver, f"our flow Euler, equal to the checkpoint's {class_name}"


def _scheduler_class(name: str) -> Any:
    from diffusers import schedulers  # slow to import, and not needed for our own solver

    known = [each for each in dir(schedulers) if each.endswith("Scheduler")]
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ModelError(f"the checkpoint names the scheduler {name}, which diffusers does not have{hint}")
    kind = getattr(schedulers, name)
    usual = ("self", "model_output", "timestep", "sample")
    if not hasattr(kind, "step") or tuple(_parameters(kind.step))[:4] != usual:
        raise ModelError(f"the scheduler {name} does not step like a solver (model_output, timestep, sample)")
    return kind


def _levels(scheduler: Any, timesteps: tuple[float, ...]) -> tuple[float, ...]:
    """The noise level of every evaluation and after the last, from whatever the scheduler keeps."""
    count = len(timesteps)
    if hasattr(scheduler, "sigmas") and len(scheduler.sigmas) >= count:
        sigmas = tuple(float(sigma) for sigma in scheduler.sigmas[: count + 1])
        return sigmas if len(sigmas) > count else (*sigmas, 0.0)
    if hasattr(scheduler, "alphas_cumprod"):
        kept = [float(scheduler.alphas_cumprod[int(t)]) for t in timesteps]
        return (*(((1 - alpha) / alpha) ** 0.5 for alpha in kept), 0.0)
    raise ModelError(f"the scheduler {type(scheduler).__name__} keeps neither sigmas nor alphas_cumprod; not supported")


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _of(memory: SolverMemory) -> SchedulerMemory:
    assert isinstance(memory, SchedulerMemory), f"this memory was started by another solver: {type(memory).__name__}"
    return memory


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    return value
