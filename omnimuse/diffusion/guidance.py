"""Guidance: which branches a step evaluates, and how their predictions combine into one.

Plain functions, and small frozen classes behind one contract, `Guidance`; the denoising loop calls them once
per step and state. Everything is computed and returned in float32. Must not know a model, a row or a rank.

Shapes: predictions are [..., D], of one state; nothing here mixes states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

POSITIVE = "positive"
NEGATIVE = "negative"
BOTH = (POSITIVE, NEGATIVE)
ONLY_POSITIVE = (POSITIVE,)


class Guidance(Protocol):
    """The contract. `scale` is the request's; `timestep` the plan's, in training steps (1000 down to 0)."""

    def branches(self, scale: float, timestep: float) -> tuple[str, ...]:
        """The branches that this step evaluates, `"positive"` first."""
        ...

    def combine(self, preds: Mapping[str, Tensor], scale: float) -> Tensor:
        """One float32 prediction from those of the branches that `branches` named."""
        ...


def cfg(pos: Tensor, neg: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): neg + scale (pos - neg). Scale 1 gives pos."""
    pos, neg = pos.float(), neg.float()
    return neg + scale * (pos - neg)


def cfg_extrapolated(pos: Tensor, neg: Tensor, scale: float) -> Tensor:
    """The same line counted from pos: pos + scale (pos - neg). Scale 0 gives pos, so scales are one less."""
    pos, neg = pos.float(), neg.float()
    return pos + scale * (pos - neg)


def cap_norm(pred: Tensor, reference: Tensor, factor: float) -> Tensor:
    """Shrinks `pred` if its norm over the whole tensor is more than `factor` times that of `reference`."""
    pred, reference = pred.float(), reference.float()
    allowed = torch.linalg.vector_norm(reference) * factor  # []
    norm = torch.linalg.vector_norm(pred)  # []
    # Ones on the device: a plain 1.0 would be uploaded, and the host would wait.
    return pred * torch.where(norm > allowed, allowed / norm, torch.ones_like(norm))


def match_norm_per_token(pred: Tensor, reference: Tensor) -> Tensor:
    """Gives every token (last axis) of `pred` the norm that it has in `reference`; [..., D] each."""
    pred, reference = pred.float(), reference.float()
    wanted = torch.norm(reference, dim=-1, keepdim=True)  # [..., 1]
    norm = torch.norm(pred, dim=-1, keepdim=True)  # [..., 1]
    return pred * (wanted / norm)


@dataclass(frozen=True)
class NoGuidance:
    """One branch: models that take the scale as an input, or none at all."""

    def branches(self, scale: float, timestep: float) -> tuple[str, ...]:
        """Only the positive branch."""
        return ONLY_POSITIVE

    def combine(self, preds: Mapping[str, Tensor], scale: float) -> Tensor:
        """The positive prediction."""
        return preds[POSITIVE].float()


@dataclass(frozen=True)
class Cfg:
    """Classifier-free guidance, active for scales above 1; `match_norm` keeps every token's norm."""

    match_norm: bool = False

    def branches(self, scale: float, timestep: float) -> tuple[str, ...]:
        """Both branches if the scale is above 1."""
        return BOTH if scale > 1 else ONLY_POSITIVE

    def combine(self, preds: Mapping[str, Tensor], scale: float) -> Tensor:
        """`cfg`, then the norms of the positive prediction if `match_norm`."""
        pos = preds[POSITIVE].float()
        if NEGATIVE not in preds:
            return pos
        pred = cfg(pos, preds[NEGATIVE], scale)
        return match_norm_per_token(pred, pos) if self.match_norm else pred


@dataclass(frozen=True)
class ExtrapolatedCfg:
    """Guidance counted from the positive prediction, active for scales above 0.

    `norm_cap` bounds the result's norm to that many times the positive one (0: no bound). Guidance stops once
    the elapsed share of time, (T - timestep) / T, passes `truncation` (1: never). T is `train_timesteps`.
    """

    norm_cap: float = 0.0
    truncation: float = 1.0
    train_timesteps: int = 1000

    def branches(self, scale: float, timestep: float) -> tuple[str, ...]:
        """Both branches if the scale is above 0 and the step lies before the truncation."""
        elapsed = (self.train_timesteps - np.float32(timestep)) / np.float32(self.train_timesteps)
        return BOTH if scale > 0 and float(elapsed) <= self.truncation else ONLY_POSITIVE

    def combine(self, preds: Mapping[str, Tensor], scale: float) -> Tensor:
        """`cfg_extrapolated`, then the cap."""
        pos = preds[POSITIVE].float()
        if NEGATIVE not in preds:
            return pos
        pred = cfg_extrapolated(pos, preds[NEGATIVE], scale)
        return cap_norm(pred, pos, self.norm_cap) if self.norm_cap > 0 else pred
