"""UniPC for flow matching: a predictor and a corrector over the clean samples of the last steps, our own.

Method: "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (arXiv 2302.04867), in
the form with data prediction that diffusers' UniPCMultistepScheduler has for flow models. Every step is a few weighted
sums, whose weights depend on the schedule alone; the reference computes them with tensors, a hundred operations a step.

Letters: x sample, m clean sample that a prediction points at, l the half log signal-to-noise ratio, h a step in l.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnimuse.diffusion.schedules import Schedule
from omnimuse.diffusion.solvers import SolverMemory, StraightLines
from omnimuse.diffusion.wrapped import DiffusersSolver

_COVERED = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_DEFAULTS = {
    "predict_x0": True,
    "lower_order_final": True,
    "solver_p": None,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


def uncovered(config: Mapping[str, Any]) -> str | None:
    """The first option of a UniPC scheduler's configuration that `FlowUniPC` cannot do; None if it can do all."""
    for name, value in _COVERED.items():
        if config.get(name) != value:
            return f"{name}={config.get(name)!r}"
    for name, value in _DEFAULTS.items():
        if config.get(name, value) != value:
            return f"{name}={config[name]!r}"
    if config.get("solver_type") == "bh1":
        return "solver_type='bh1'"
    order = config.get("solver_order", 2)
    return None if order in (1, 2) else f"solver_order={order!r}"


@dataclass
class UniPCMemory:
    """What the next step needs: the sample before the last step, and the clean samples found so far, newest first.

    `taken` steps were taken since evaluation `first`, the last of them of order `order`.
    """

    first: int = 0
    taken: int = 0
    order: int = 0
    before: Tensor | None = None
    clean: list[Tensor] = field(default_factory=list)

    def to(self, device: torch.device | str) -> None:
        """Moves the samples."""
        self.before = None if self.before is None else self.before.to(device)
        self.clean = [each.to(device) for each in self.clean]


@dataclass(frozen=True)
class FlowUniPC(StraightLines):
    """UniPC of order 1 or 2, of order 1 in the last step. `levels` plans the noise levels.

    Steps in `uncorrected` are left as predicted. The form with B(h) = exp(h) - 1, called bh2.
    """

    levels: DiffusersSolver
    order: int = 2
    uncorrected: frozenset[int] = frozenset()

    @staticmethod
    def over(levels: DiffusersSolver) -> FlowUniPC:
        """The solver that the configuration of `levels` describes."""
        config = levels.config
        return FlowUniPC(
            levels=levels,
            order=config.get("solver_order", 2),
            uncorrected=frozenset(config.get("disable_corrector", ())),
        )

    def plan(self, steps: int, tokens: int) -> Schedule:
        """The levels of the scheduler that the checkpoint names; one evaluation per step."""
        return self.levels.plan(steps, tokens)

    def start(self, schedule: Schedule) -> UniPCMemory:
        """Nothing is known yet."""
        return UniPCMemory()

    def start_late(
        self, memory: SolverMemory, steps: int, schedule: Schedule, clean: Tensor, noise: Tensor
    ) -> tuple[Tensor, int]:
        """The same, and the first evaluation is remembered."""
        _of(memory).first = steps
        return super().start_late(memory, steps, schedule, clean, noise)

    def step(
        self,
        memory: SolverMemory,
        index: int,
        schedule: Schedule,
        sample: Tensor,
        prediction: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Correct the sample by what the new prediction says of it, then predict the next; float32, draws nothing."""
        own, sigmas = _of(memory), schedule.sigmas
        assert index == own.first + own.taken, f"evaluation {index} was asked for, {own.first + own.taken} is next"
        found = torch.add(sample.float(), prediction.float(), alpha=-sigmas[index])
        if own.before is not None and index - 1 not in self.uncorrected:
            corrector = self._weights(sigmas, index, own.order, corrects=True)
            sample = _sum(corrector, [own.before, *own.clean[: own.order], found])
        own.clean = [found, *own.clean[: self.order - 1]]
        own.taken += 1
        own.order, own.before = min(self.order, len(schedule) - index, own.taken), sample
        return _sum(self._weights(sigmas, index + 1, own.order), [sample, *own.clean[: own.order]])

    def _weights(self, sigmas: tuple[float, ...], index: int, order: int, corrects: bool = False) -> list[float]:
        """Weights of x, of m at `index` - 1 and before it, and of m at `index` last if it `corrects`.

        The step goes from level `index` - 1 to `index`, with `order` clean samples behind it.
        """
        now, before = sigmas[index], sigmas[index - 1]
        rise = -_step(sigmas, index - 1, index)  # the reference's hh
        phi = math.expm1(rise)  # -1 where the step ends without noise
        x, newest = now / before, -(1.0 - now) * phi
        if order == 1 and not corrects:
            return [x, newest]
        scale = (1.0 - now) * phi
        ratio = _step(sigmas, index - 1, index - 2) / -rise if order == 2 else 1.0
        older, new = _shares(rise, phi, ratio, order) if corrects else (0.5, 0.0)
        weights = [x, newest + scale * (older / ratio + new)]
        weights += [-scale * older / ratio] if order == 2 else []
        return [*weights, -scale * new] if corrects else weights


def _shares(rise: float, phi: float, ratio: float, order: int) -> tuple[float, float]:
    """How much of the corrector's correction comes from the older clean sample, and how much from the new one."""
    if order == 1:
        return 0.0, 0.5
    second = phi / rise - 1
    one, two = second / phi, (second / rise - 0.5) * 2 / phi
    older = (one - two) / (1 - ratio)
    return older, one - older


def _step(sigmas: tuple[float, ...], start: int, end: int) -> float:
    """How far the half log signal-to-noise ratio rises between two levels; infinite where the last has no noise."""
    return _log_ratio(sigmas[end]) - _log_ratio(sigmas[start])


def _log_ratio(sigma: float) -> float:
    return math.log1p(-sigma) - math.log(sigma) if sigma else math.inf


def _sum(weights: list[float], samples: list[Tensor]) -> Tensor:
    """The weighted sum of the samples, float32."""
    total = samples[0].float() * weights[0]
    for weight, sample in zip(weights[1:], samples[1:], strict=True):
        total.add_(sample, alpha=weight)
    return total


def _of(memory: SolverMemory) -> UniPCMemory:
    assert isinstance(memory, UniPCMemory), f"this memory was started by another solver: {type(memory).__name__}"
    return memory
