"""Solvers: how a prediction moves the latents from one noise level to the next. The contract, and Euler's method.

A solver keeps what it must remember in a `SolverMemory` of one state: states never disturb one another and can be
paused. Called by the denoising loop. Must not know a model; takes random numbers only from the generator it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from omnimuse.diffusion.schedules import FlowSchedule, Schedule, Spacing


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

    def start_late(
        self, memory: SolverMemory, steps: int, schedule: Schedule, clean: Tensor, noise: Tensor
    ) -> tuple[Tensor, int]:
        """Leave out the first `steps` steps: `clean` noised to where the next one starts, and that evaluation's index.

        Comes instead of `scale_noise_start`; `steps` is less than the schedule has.
        """
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
    # In the velocity's dtype, as in the reference; a plain number, so that nothing is uploaded.
    step = float(torch.tensor(np.float32(sigma_next) - np.float32(sigma)).to(velocity.dtype))
    return (sample.to(torch.float32) + step * velocity).to(velocity.dtype)


def flow_denoised(sample: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Where a straight line along the velocity meets sigma 0; float32."""
    return sample.float() - sigma * velocity.float()


def flow_noised(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """The point at `sigma` of the straight line from clean latents to noise."""
    return sigma * noise + (1.0 - sigma) * clean


@dataclass
class NoMemory:
    """The memory of a solver that remembers nothing."""

    def to(self, device: torch.device | str) -> None:
        """There is nothing to move."""


class StraightLines:
    """What solvers of flow matching share, whose predictions are the velocity of a straight line from the noise."""

    def scale_noise_start(self, memory: SolverMemory, noise: Tensor) -> Tensor:
        """Sigma starts at 1: the noise itself."""
        return noise

    def start_late(
        self, memory: SolverMemory, steps: int, schedule: Schedule, clean: Tensor, noise: Tensor
    ) -> tuple[Tensor, int]:
        """`flow_noised`; one evaluation per step."""
        return flow_noised(clean, noise, schedule.sigmas[steps]), steps

    def scale_input(self, memory: SolverMemory, index: int, schedule: Schedule, sample: Tensor) -> Tensor:
        """The sample itself."""
        return sample

    def denoised(self, index: int, schedule: Schedule, sample: Tensor, prediction: Tensor) -> Tensor:
        """`flow_denoised`."""
        return flow_denoised(sample, prediction, schedule.sigmas[index])


@dataclass(frozen=True)
class FlowEuler(StraightLines):
    """Flow matching by Euler's method (velocity predictions), on the levels of a `FlowSchedule`."""

    levels: FlowSchedule = field(default_factory=FlowSchedule)
    spacing: Spacing = "linear"

    def plan(self, steps: int, tokens: int) -> Schedule:
        """One evaluation per step."""
        return self.levels.plan(steps, tokens, spacing=self.spacing)

    def start(self, schedule: Schedule) -> NoMemory:
        """Euler's method remembers nothing."""
        return NoMemory()

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
