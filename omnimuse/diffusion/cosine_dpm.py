"""The stochastic DPM-Solver++ of Stable Audio's kind: noise levels up to hundreds, fresh noise at every step.

Method: "DPM-Solver++" (arXiv 2211.01095) in its stochastic multistep form with data prediction, preconditioned as in
EDM (arXiv 2206.00364), as diffusers' CosineDPMSolverMultistepScheduler has it. Its noise is a Brownian motion over the
levels whose seed is the request's. Every step is a weighted sum, whose weights depend on the schedule alone.

Letters: s a level (sigma), x sample, m clean sample that a prediction points at, h a step in -log s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.diffusion.brownian import Brownian
from omnimuse.diffusion.schedules import Schedule
from omnimuse.diffusion.solvers import SolverMemory

_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "sigma_schedule": ("exponential",),
    "prediction_type": ("v_prediction",),
    "solver_order": (1, 2),
    "solver_type": ("midpoint", "heun"),
    "final_sigmas_type": ("zero",),
}
_IDLE = frozenset({"num_train_timesteps", "rho", "euler_at_final", "lower_order_final"})
"""Options that change nothing here: the last step, to no noise at all, is of order 1 in any case."""
_NUMBERS = frozenset({"sigma_min", "sigma_max", "sigma_data"})


def uncovered(config: Mapping[str, Any]) -> str | None:
    """The first option of such a scheduler's configuration that `CosineDpm` cannot do; None if it can do all."""
    for name, value in config.items():
        known = name in _IDLE or name in _NUMBERS or value in _ALLOWED.get(name, ())
        if not known and not name.startswith("_"):
            return f"{name}={value!r}"
    return None


@dataclass
class CosineMemory:
    """What the next step needs: the clean sample that the last prediction pointed at, and the motion of the noise."""

    clean: Tensor | None = None
    motion: Brownian | None = None

    def to(self, device: torch.device | str) -> None:
        """Moves the sample; noise is made on the CPU and stays there."""
        self.clean = None if self.clean is None else self.clean.to(device)


@dataclass(frozen=True)
class CosineDpm:
    """Of order 1 or 2, `heun` or by the midpoint; levels fall evenly in their logarithm. `data` is EDM's sigma_data."""

    low: float = 0.3
    high: float = 500.0
    data: float = 1.0
    order: int = 2
    heun: bool = False

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> CosineDpm:
        """The solver that a configuration without `uncovered` options describes."""
        plain = CosineDpm()
        return CosineDpm(
            low=float(config.get("sigma_min", plain.low)),
            high=float(config.get("sigma_max", plain.high)),
            data=float(config.get("sigma_data", plain.data)),
            order=int(config.get("solver_order", plain.order)),
            heun=config.get("solver_type") == "heun",
        )

    def plan(self, steps: int, tokens: int) -> Schedule:
        """One evaluation per step; a timestep is 2 / pi of the arc tangent of its level."""
        logs = torch.linspace(math.log(self.low), math.log(self.high), steps, dtype=torch.float32, device="cpu")
        sigmas = logs.exp().flip(0)
        times = sigmas.atan() / math.pi * 2
        return Schedule(tuple(times.tolist()), (*sigmas.tolist(), 0.0), steps, tokens)

    def start(self, schedule: Schedule) -> CosineMemory:
        """Nothing is known yet."""
        return CosineMemory()

    def scale_noise_start(self, memory: SolverMemory, noise: Tensor) -> Tensor:
        """As loud as the highest level, and the data beside it."""
        return noise * (self.high**2 + 1) ** 0.5

    def start_late(
        self, memory: SolverMemory, steps: int, schedule: Schedule, clean: Tensor, noise: Tensor
    ) -> tuple[Tensor, int]:
        """The clean sample with noise of that step's level over it; from the first on as loud as it starts alone."""
        level = schedule.sigmas[steps] if steps else (self.high**2 + 1) ** 0.5
        return clean + noise * level, steps

    def scale_input(self, memory: SolverMemory, index: int, schedule: Schedule, sample: Tensor) -> Tensor:
        """With unit variance."""
        return sample * (schedule.sigmas[index] ** 2 + self.data**2) ** -0.5

    def denoised(self, index: int, schedule: Schedule, sample: Tensor, prediction: Tensor) -> Tensor:
        """The clean sample, from a prediction of the velocity."""
        level = schedule.sigmas[index]
        whole = level**2 + self.data**2
        return sample.float() * (self.data**2 / whole) - prediction.float() * (level * self.data / whole**0.5)

    def step(
        self,
        memory: SolverMemory,
        index: int,
        schedule: Schedule,
        sample: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Towards the clean sample, and fresh noise over it; float32. `generator` gives its seed and draws nothing."""
        own, now, then = _of(memory), schedule.sigmas[index], schedule.sigmas[index + 1]
        clean = self.denoised(index, schedule, sample, prediction)
        before, own.clean = own.clean, clean
        if then == 0.0:
            return clean
        ratio, step = then / now, math.log(now / then)
        moved = 1 - ratio**2
        found = sample.float() * ratio**2 + clean * moved
        if self.order == 2 and before is not None:
            last = math.log(schedule.sigmas[index - 1] / now)
            second = 1 - moved / (2 * step) if self.heun else 0.5 * moved
            found = found + (clean - before) * (second * step / last)
        return found + self._noise(own, sample, now, then, generator) * (then * math.sqrt(moved))

    def _noise(
        self, own: CosineMemory, sample: Tensor, now: float, then: float, generator: torch.Generator | None
    ) -> Tensor:
        """What the motion gains from one level down to the next, of unit variance."""
        if own.motion is None:
            assert generator is not None, "a stochastic solver needs the state's generator"
            own.motion = Brownian(generator.initial_seed(), self.low, self.high, sample.shape)
        noise = -own.motion.between(then, now)
        if sample.device.type == "cuda":
            noise = noise.pin_memory()  # so that the host need not wait for the copy
        return noise.to(sample.device, non_blocking=True)


def _of(memory: SolverMemory) -> CosineMemory:
    assert isinstance(memory, CosineMemory), f"this memory was started by another solver: {type(memory).__name__}"
    return memory
