"""Guidance: how the predictions of a step's branches combine into one. What is evaluated, `core/guidance.py` says.

Plain functions; the denoising loop calls `combine` once per step and state. Everything is computed and returned in
float32. Must not know a model, a row or a rank.

Shapes: predictions are [C, *, h, w], of one state; nothing here mixes states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from omnimuse.core.guidance import NEGATIVE, POSITIVE, Guidance
from omnimuse.core.params import FamilyParams

TRAIN_TIMESTEPS = 1000
"""Timesteps go from so many to 0."""


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


def match_norm_per_token(
    pred: Tensor, reference: Tensor, patch: int, within: tuple[float, float] = (0.0, math.inf)
) -> Tensor:
    """Gives every token of `pred` the norm that it has in `reference`: all channels of `patch` x `patch` latents.

    The factor stays `within` two bounds.
    """
    (pred, reference), size = (_in_patches(x.float(), patch) for x in (pred, reference)), pred.shape
    wanted, norm = (torch.linalg.vector_norm(x, dim=(0, -3, -1), keepdim=True) for x in (reference, pred))
    return (pred * (wanted / norm).clamp(*within)).reshape(size)


def match_norm_per_line(pred: Tensor, reference: Tensor) -> Tensor:
    """Gives every line [w] of `pred`, of each channel, the norm that it has in `reference`."""
    wanted, norm = (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) for x in (reference, pred))
    return pred * (wanted / norm)


def combine(rule: Guidance | None, extra: FamilyParams, preds: Mapping[str, Tensor], scale: float) -> Tensor:
    """One float32 prediction from those of the branches that a step evaluated, as `rule` says for such requests."""
    pos = preds[POSITIVE].float()
    if rule is None or NEGATIVE not in preds:
        return pos
    how, along = rule.how(extra), cfg if rule.neutral else cfg_extrapolated
    pred = along(pos, preds[NEGATIVE], scale)
    if how.match_norm:
        line = how.per == "line"
        pred = match_norm_per_line(pred, pos) if line else match_norm_per_token(pred, pos, how.patch, how.match_within)
    if how.aside in preds:
        aside = preds[how.aside]
        pred = cfg(pred, aside, how.over) if how.over else pred + (pos - aside.float()) * how.away
    return cap_norm(pred, pos, how.norm_cap) if how.norm_cap > 0 else pred


def led(clean: Mapping[str, Tensor], scales: Mapping[str, float], rescale: float) -> Tensor:
    """One estimate of clean latents from those of all branches: led away from each that was evaluated besides by its
    scale (1: not at all), then `rescale` of the way to the spread of the positive one (arXiv 2305.08891).
    """
    found = plain = clean[POSITIVE]
    for branch, scale in scales.items():
        if branch in clean:
            found = found + (scale - 1) * (plain - clean[branch])
    return rescale * (found * (plain.std() / found.std())) + (1 - rescale) * found if rescale else found


def elapsed(timestep: float) -> float:
    """The share of time before a step at `timestep`, computed in float32 as the reference does."""
    return float((TRAIN_TIMESTEPS - np.float32(timestep)) / np.float32(TRAIN_TIMESTEPS))


def _in_patches(x: Tensor, patch: int) -> Tensor:
    """[..., h, w] -> [..., h/p, p, w/p, p], a view."""
    return x.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))
