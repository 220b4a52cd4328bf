"""Latents as tokens: the patches of a picture, row by row, and back. Networks of one and of two streams use it.

Letters: S patches; c h w latent channels, height, width; p latents a side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

PATCH = 2  # latent pixels per token side


def patchify(latents: Tensor, patch: int = PATCH, *, last: bool = False) -> Tensor:
    """[c, h, w] -> [S, p * p * c]; within a patch the order is channel, row, column, or channels come `last`.

    Of a video [c, f, h, w] the frames follow each other.
    """
    c, h, w = latents.flatten(1, -2).shape
    x = latents.reshape(c, h // patch, patch, w // patch, patch)
    return x.permute(*((1, 3, 2, 4, 0) if last else (1, 3, 0, 2, 4))).reshape(-1, c * patch * patch)


def unpatchify(x: Tensor, size: Sequence[int], patch: int = PATCH, *, last: bool = False) -> Tensor:
    """The reverse of `patchify`, to `size` = (c, h, w) or (c, f, h, w), of the first patches of `x`."""
    c, rows, columns = size[0], prod(size[1:-1]) // patch, size[-1] // patch
    x = x[: rows * columns]
    if last:
        return x.reshape(rows, columns, patch, patch, c).permute(4, 0, 2, 1, 3).reshape(tuple(size))
    return x.reshape(rows, columns, c, patch, patch).permute(2, 0, 3, 1, 4).reshape(tuple(size))
