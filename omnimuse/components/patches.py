"""Latents as tokens: the patches of a picture or a video, row by row, and back.

Letters: S patches, D width; c f h w latent channels, frames, height, width; p q r latents of a patch along these.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import cast

from torch import Tensor

from omnimuse.layers.steady import Product3d

PATCH = 2  # latent pixels per token side


Patch = int | tuple[int, int, int]
"""Latents a side of a patch, of one frame, or those along frames, height and width."""


def patchify(latents: Tensor, patch: Patch = PATCH, *, last: bool = False) -> Tensor:
    """[c, h, w] or [c, f, h, w] -> [S, c * p * q * r]; within a patch the order is channel, frame, row, column, or
    channels come `last`.
    """
    (p, q, r), (c, *_, h, w) = _sides(patch), latents.shape
    x = latents.reshape(c, -1, p, h // q, q, w // r, r)
    return x.permute(*((1, 3, 5, 2, 4, 6, 0) if last else (1, 3, 5, 0, 2, 4, 6))).reshape(-1, c * p * q * r)


def unpatchify(x: Tensor, size: Sequence[int], patch: Patch = PATCH, *, last: bool = False) -> Tensor:
    """The reverse of `patchify`, to `size` = (c, h, w) or (c, f, h, w), of the first patches of `x`."""
    (p, q, r), (c, *frames, h, w) = _sides(patch), size
    cells = (prod(frames) // p, h // q, w // r)
    x = x[: prod(cells)]
    if last:
        return x.reshape(*cells, p, q, r, c).permute(6, 0, 3, 1, 4, 2, 5).reshape(tuple(size))
    return x.reshape(*cells, c, p, q, r).permute(3, 0, 4, 1, 5, 2, 6).reshape(tuple(size))


def embedded(convolution: Product3d, latents: Tensor) -> Tensor:
    """The tokens [S, D] of latents [c, f, h, w], by a convolution whose kernel is a patch: one product makes all."""
    return convolution.product(patchify(latents.to(convolution.weight), cast(Patch, convolution.kernel_size)))


def _sides(patch: Patch) -> tuple[int, int, int]:
    return (1, patch, patch) if isinstance(patch, int) else patch
