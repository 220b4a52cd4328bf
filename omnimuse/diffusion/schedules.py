"""Noise schedules: how many steps, at which noise levels (sigmas) and at which timesteps.

Plain functions on float32 arrays, and `FlowSchedule`, which composes them as a checkpoint's scheduler config
asks. Called by the solvers. The arithmetic repeats diffusers' FlowMatchEulerDiscreteScheduler bit for bit, so
the order and the precision of every operation here matter. Must not know a model or draw noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from omnimuse.core.errors import ModelError, RequestError

Sigmas = npt.NDArray[np.floating[Any]]
"""Noise levels, falling: one float32 number per evaluation."""

ShiftKind = Literal["exponential", "linear"]

Spacing = Literal["linear", "linear64", "scheduler", "whole", "whole_last", "trained"]
"""Who chooses a flow solver's levels before shifting: we (1 down to 1/steps, spaced in float32 or in float64), or the
scheduler that the checkpoint names. "whole": whole timesteps from the first down towards 1, which no shift moves;
"whole_last": down to 1, which is the last. "trained": some of the levels of training, from the first to the last; where
a shift follows the size, as linear64."""

Mu = Callable[["FlowSchedule", int, int], float]
"""(schedule, latent tokens, steps) -> how far a dynamic shift moves the levels, for models with a rule of their own."""

WHOLE = ("whole", "whole_last")

_NOT_COVERED = (
    "stochastic_sampling",
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
MOVING = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
"""What says how far a dynamic shift moves the levels. Schedulers that are told `mu` need not know it."""
_COVERED = (*MOVING, "num_train_timesteps", "shift", "use_dynamic_shifting", "shift_terminal", "time_shift_type")


@dataclass(frozen=True)
class Schedule:
    """A plan as data: evaluation i happens at `timesteps[i]` and goes from `sigmas[i]` to `sigmas[i + 1]`.

    All values are exact float32 numbers. `steps` and `tokens` are what was asked for; a second-order solver
    plans more evaluations than steps.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    steps: int
    tokens: int

    def __post_init__(self) -> None:
        assert len(self.sigmas) == len(self.timesteps) + 1, (len(self.timesteps), len(self.sigmas))

    def __len__(self) -> int:
        """How many evaluations there are."""
        return len(self.timesteps)


def linear_sigmas(steps: int, double: bool = False) -> Sigmas:
    """`steps` levels from 1 down to 1/steps, spaced in float32, or in float64 and then rounded if `double`.

    The two differ in the last bit; some pipelines of the reference do the one, some the other.
    """
    if double:
        return np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    return torch.linspace(1.0, 1 / steps, steps, dtype=torch.float32, device="cpu").numpy()


def trained_sigmas(steps: int, trained: int) -> Sigmas:
    """`steps` of the levels 1, ..., 1/trained of training, as evenly as they lie, in float32."""
    picked = np.linspace(0, trained - 1, steps).astype(np.int64)
    return (trained - picked).astype(np.float32) / trained


def shift_static(sigmas: Sigmas, shift: float) -> Sigmas:
    """Moves the levels toward 1: s -> shift s / (1 + (shift - 1) s), for shift > 0; 1 changes nothing."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def shift_dynamic(sigmas: Sigmas, mu: float, kind: ShiftKind = "exponential") -> Sigmas:
    """The same move by exp(mu) (`"exponential"`) or by mu > 0 (`"linear"`), for levels in (0, 1]."""
    factor = math.exp(mu) if kind == "exponential" else mu
    return factor / (factor + (1 / sigmas - 1))


def linear_mu(tokens: int, base_tokens: int, max_tokens: int, base_shift: float, max_shift: float) -> float:
    """The line through (base_tokens, base_shift) and (max_tokens, max_shift), at `tokens`; not clamped."""
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return tokens * slope + (base_shift - slope * base_tokens)


def stretch_terminal(sigmas: Sigmas, terminal: float) -> Sigmas:
    """Stretches two or more levels so that the last becomes `terminal`, in (0, 1); a level of 1 stays."""
    rest = 1 - sigmas
    return 1 - rest / (rest[-1] / (1 - terminal))


@dataclass(frozen=True)
class FlowSchedule:
    """The schedule options of a flow-matching Euler scheduler config that omnimuse computes itself.

    `rule` stands in place of the line that a dynamic shift follows otherwise.
    """

    train_timesteps: int = 1000
    shift: float = 1.0
    dynamic: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    terminal: float | None = None
    kind: ShiftKind = "exponential"
    rule: Mu | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("exponential", "linear"):
            raise ModelError(f"scheduler config: time_shift_type={self.kind!r} is unknown; use exponential or linear")
        if self.dynamic and self.max_tokens == self.base_tokens:
            raise ModelError(
                f"scheduler config: base_image_seq_len and max_image_seq_len are both {self.max_tokens}; "
                "dynamic shifting needs two different lengths"
            )

    @staticmethod
    def from_config(config: Mapping[str, Any], rule: Mu | None = None) -> FlowSchedule:
        """From `scheduler_config.json`; missing or null values take diffusers' default. See `unsupported`."""
        plain = FlowSchedule()
        terminal = config.get("shift_terminal")
        return FlowSchedule(
            train_timesteps=int(_number(config, "num_train_timesteps", plain.train_timesteps)),
            shift=_number(config, "shift", plain.shift),
            dynamic=bool(config.get("use_dynamic_shifting")),
            base_shift=_number(config, "base_shift", plain.base_shift),
            max_shift=_number(config, "max_shift", plain.max_shift),
            base_tokens=int(_number(config, "base_image_seq_len", plain.base_tokens)),
            max_tokens=int(_number(config, "max_image_seq_len", plain.max_tokens)),
            terminal=_number(config, "shift_terminal", 0.0) if terminal else None,
            kind=config.get("time_shift_type") or plain.kind,
            rule=rule,
        )

    def mu(self, tokens: int, steps: int) -> float:
        """How far the levels move for an output of `tokens` latent tokens in `steps` steps, if shifting is dynamic."""
        if self.rule is not None:
            return self.rule(self, tokens, steps)
        return linear_mu(tokens, self.base_tokens, self.max_tokens, self.base_shift, self.max_shift)

    def levels(self, steps: int, spacing: Spacing) -> Sigmas:
        """`steps` levels before shifting. The scheduler's own lie, in float64, between the ends of those that it was
        trained with, which a static shift has moved once already.
        """
        if spacing == "trained" and not self.dynamic:
            return trained_sigmas(steps, self.train_timesteps)
        if spacing in ("linear", "linear64", "trained"):
            return linear_sigmas(steps, spacing != "linear")
        if spacing in WHOLE:
            more = 1 if spacing == "whole" else 0
            whole = np.linspace(self.train_timesteps, 1.0, steps + more)[:steps].astype(np.int64)
            return whole.astype(np.float32) / self.train_timesteps
        ends = np.array([self.train_timesteps, 1], dtype=np.float32) / np.float32(self.train_timesteps)
        ends = ends if self.dynamic else shift_static(ends, self.shift)
        first, last = (float(end) * self.train_timesteps for end in ends)
        return np.linspace(first, last, steps) / self.train_timesteps

    def plan(
        self, steps: int, tokens: int, sigmas: Sequence[float] | None = None, spacing: Spacing = "linear"
    ) -> Schedule:
        """The schedule for `steps` steps over `tokens` latent tokens, ending at 0.

        `sigmas` replaces the levels that `spacing` makes, before shifting. RequestError: too few steps, or levels that
        do not fall.
        """
        levels = _given(sigmas, steps) if sigmas is not None else self.levels(_at_least(steps, 1), spacing)
        whole = np.rint(levels * self.train_timesteps) if spacing in WHOLE else None
        if self.dynamic:
            levels = shift_dynamic(levels, self.mu(tokens, steps), self.kind)
        else:
            levels = shift_static(levels, self.shift)
        if self.terminal is not None:
            _at_least(steps, 2, " for this model, whose schedule has a terminal shift")
            levels = stretch_terminal(levels, self.terminal)
        levels = levels.astype(np.float32)
        timesteps = levels * self.train_timesteps if whole is None else whole
        return Schedule(tuple(timesteps.tolist()), (*levels.tolist(), 0.0), steps, tokens)


def root_mu(schedule: FlowSchedule, tokens: int, steps: int) -> float:
    """By the square root of the tokens: of `base_tokens` tokens `max_shift` above `base_shift`."""
    return math.sqrt(tokens / schedule.base_tokens) * schedule.max_shift + schedule.base_shift


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The first option of a flow-matching Euler config that `FlowSchedule` does not cover, as name=value."""
    for name, value in config.items():
        if value and name not in _COVERED and not name.startswith("_"):
            known = "" if name in _NOT_COVERED else " (unknown)"
            return f"{name}={value!r}{known}"
    return None


def _given(sigmas: Sequence[float], steps: int) -> Sigmas:
    levels = np.array(sigmas).astype(np.float32)
    falls = bool(np.all(np.diff(levels) < 0)) and len(levels) > 0 and levels[-1] > 0 and levels[0] <= 1
    if len(levels) != steps or not falls:
        raise RequestError(f"sigmas={list(sigmas)} is not allowed; give {steps} falling numbers in (0, 1]", "sigmas")
    return levels


def _at_least(steps: int, least: int, why: str = "") -> int:
    if steps < least:
        raise RequestError(
            f"num_inference_steps={steps} is not allowed{why}; use at least {least}", "num_inference_steps"
        )
    return steps


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"scheduler config: {name}={value!r} is not a number; correct scheduler_config.json")
    return value
