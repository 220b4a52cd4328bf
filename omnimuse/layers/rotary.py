"""Rotary position embedding over several axes, turning adjacent pairs (arXiv 2104.09864).

A model computes one table per request with `rotary_table` and turns queries and keys with `rotate` in every
block. Tables hold real numbers, so that they can be moved and saved like any tensor; they stay float32 in
every network.

Letters: B batch, S tokens, N heads, H head dim, A axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # [B, S, 2, N, H/2]
    turned = (pairs * torch.view_as_complex(cosines)).add_(pairs * torch.view_as_complex(sines))
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
