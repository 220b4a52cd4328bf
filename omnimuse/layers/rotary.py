"""Rotary position embedding over several axes, turning adjacent pairs (arXiv 2104.09864).

A model computes one table per request with `rotary_table` and turns queries and keys with `rotate` in every
block. Tables hold real numbers, so that they can be moved and saved like any tensor; they stay float32 in
every network. What turns pairs half a head apart, as language models do, has `turn_halves`.

Letters: B batch, S tokens, N heads, H head dim, A axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_table(positions: Tensor, axes_dims: Sequence[int], theta: float, *, exact: bool = False) -> Tensor:
    """Every angle as (cosine, 0) and as (0, sine): positions [S, A] -> [S, 2, H/2, 2] in float32, H = sum(axes_dims).

    Positions are whole numbers. Everything is computed in float64 and rounded once: the angles, or if `exact` the
    cosines and sines. diffusers has models of both kinds; at position 1000 they differ by up to 3e-5.
    """
    angles = []
    for axis, dim in enumerate(axes_dims):
        steps = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device)
        frequencies = 1.0 / theta ** (steps / dim)  # [dim/2]
        angles.append(torch.outer(positions[:, axis].double(), frequencies))  # [S, dim/2]
    angle = torch.cat(angles, dim=-1)  # [S, H/2]
    angle = angle if exact else angle.float()
    return rotations(angle)


def shared_rotary(places: Tensor, dim: int, theta: float) -> Tensor:
    """The table [S, 2, dim/2, 2] of all heads together, at places [S, A] in parts of the most: an axis turns by
    frequencies of its own, and what is too much for equally many does not turn.
    """
    axes = places.shape[1]
    powers = torch.linspace(0.0, 1.0, dim // (2 * axes), dtype=torch.float64, device=places.device)
    frequencies = (theta**powers * pi / 2.0).float()
    angles = ((places[:, :, None] * 2 - 1) * frequencies).transpose(1, 2).flatten(1)  # [S, axes * frequencies]
    return rotations(F.pad(angles, (dim // 2 - angles.shape[1], 0)))


def middles(length: int, step: int, most: float, device: torch.device, second: float = 0.0) -> Tensor:
    """Where the middles of so many latents are that stand for `step` frames or pixels each, as parts of `most`:
    [length]. With frames a `second` it is when, in time: the first latent then stands for one frame alone.
    """
    starts = torch.arange(length, dtype=torch.float32, device=device)
    start, end = ((starts + more) * step for more in (0, 1))
    if second:
        start, end = ((each + 1 - step).clamp(min=0) / second for each in (start, end))
    return (start + end) / 2.0 / most


def rotations(angle: Tensor) -> Tensor:
    """The table for `rotate` of angles [S, H/2], computed in their dtype: [S, 2, H/2, 2] in float32."""
    parts = torch.view_as_real(torch.polar(torch.ones_like(angle), angle)).float()  # [S, H/2, 2]
    return torch.diag_embed(parts).transpose(1, 2).contiguous()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i+1]) by its angle: x [B, S, 2, N, H], table [B, S, 2, H/2, 2] -> like x.

    The third dimension of x is queries and keys, which are turned alike. As complex numbers, since that is the fastest
    kernel, but times the cosine and times the sine one by one: of the two products in each part one is then 0, and how
    a kernel adds them cannot round. So every number is that of real arithmetic, wherever it lies in its tensor.
    """
    cosines, sines = table[:, :, :, None, None].unbind(2)  # the same for queries and keys and for all heads
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic, and leaves complex as it is
        (a, b), cos, sin = x.float().unflatten(-1, (-1, 2)).unbind(-1), cosines[..., 0], sines[..., 1]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)
    return torch.view_as_real(_turned(x, cosines, sines)).flatten(-2).to(x.dtype)


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + H/2]) by its angle, in the dtype of `x`: x [*, H], cosines and sines [*, H/2]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """As complex numbers [B, S, 2, N, H/2]; a copy of `x` in another format is written over."""
    exact = x.float()
    pairs, sine = torch.view_as_complex(exact.unflatten(-1, (-1, 2))), torch.view_as_complex(sines)
    turned = pairs * torch.view_as_complex(cosines)
    return turned.add_(pairs * sine if exact is x or exact.requires_grad else pairs.mul_(sine))
