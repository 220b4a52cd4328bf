"""`DiffusersSolver`: any scheduler class of diffusers that a checkpoint names, behind the solver contract.

Every state gets a scheduler object of its own, kept in its memory, so states never disturb one another and can be
paused. diffusers is imported when such a solver is made, not before.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.core.flow import is_flow
from omnimuse.diffusion.schedules import MOVING, FlowSchedule, Mu, Schedule, Spacing
from omnimuse.diffusion.solvers import SolverMemory, flow_denoised


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
    scheduler choose. For `mu` see `FlowSchedule.rule`.
    """

    class_name: str
    config: Mapping[str, Any]
    spacing: Spacing = "linear"
    mu: Mu | None = None

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

    def start_late(
        self, memory: SolverMemory, steps: int, schedule: Schedule, clean: Tensor, noise: Tensor
    ) -> tuple[Tensor, int]:
        """As the scheduler adds noise; ModelError if it cannot begin anywhere but at its first timestep."""
        own = _of(memory)
        scheduler, index = own.scheduler, steps * own.scheduler.order
        if not hasattr(scheduler, "set_begin_index"):
            raise ModelError(f"the scheduler {self.class_name} cannot begin in the middle; pictures cannot be changed")
        scheduler.set_begin_index(index)
        own.position, timestep = index, scheduler.timesteps[index : index + 1]
        if hasattr(scheduler, "scale_noise"):
            return scheduler.scale_noise(clean[None], timestep, noise[None])[0], index
        return scheduler.add_noise(clean[None], noise[None], timestep)[0], index

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
        return is_flow({**self.config, "_class_name": self.class_name})

    @property
    def _translated(self) -> bool:
        """Whether a linear shift is told as the exponential one that moves as far, which all schedulers know."""
        return self.config.get("time_shift_type") == "linear" and not self.class_name.startswith("FlowMatch")

    def _ready(self, steps: int, tokens: int) -> Any:
        scheduler = self._create()
        accepted = _parameters(scheduler.set_timesteps)
        options: dict[str, Any] = {}
        if "mu" in accepted and scheduler.config.get("use_dynamic_shifting"):
            mu = FlowSchedule.from_config({**self.config, **scheduler.config}, self.mu).mu(tokens, steps)
            options["mu"] = math.log(mu) if self._translated else mu
        if "sigmas" in accepted and self.spacing != "scheduler" and self._is_flow():
            moves = self.spacing == "trained" and scheduler.config.get("use_dynamic_shifting")
            trained = FlowSchedule(int(scheduler.config.get("num_train_timesteps") or 1000))
            levels = trained.levels(steps, self.spacing).astype(np.float64)
            levels = np.linspace(1.0, 1 / steps, steps) if moves or self.spacing == "linear64" else levels
            scheduler.set_timesteps(sigmas=levels, **options)
        else:
            scheduler.set_timesteps(steps, **options)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler

    def _create(self) -> Any:
        kind = _scheduler_class(self.class_name)
        try:
            shift = {"time_shift_type": "exponential"} if self._translated else {}
            known = _parameters(kind.__init__)
            told = {name: value for name, value in self.config.items() if name in known or name not in MOVING}
            scheduler = kind.from_config({**told, **shift})
        except (ImportError, ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(f"the scheduler {self.class_name} refuses its config: {error}") from error
        if scheduler.config.get("noise_sampler_seed", 0) is None:
            raise ModelError(
                f"{self.class_name} would draw noise nobody can repeat; set noise_sampler_seed in its config"
            )
        return scheduler


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
