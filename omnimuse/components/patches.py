"""Latents as tokens: the patches of a picture, row by row, and back. Networks of one and of two streams use it.

Letters: S patches; c h w latent channels, height, width; p latents a side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

PATCH = 2  # latent pixels per token side


def patchify(latents: Tensor, patch: int = PATCH, *, last: bool = False) -> Tensor:
    """[c, h, w] -> [S, p * p * c]; within a patch the order is channel, row, column, or channels come `last`."""
    c, h, w = latents.shape
    x = latents.reshape(c, h // patch, patch, w // patch, patch)
    return x.permute(*((1, 3, 2, 4, 0) if last else (1, 3, 0, 2, 4))).reshape(-1, c * patch * patch)


def unpatchify(x: Tensor, size: Sequence[int], patch: int = PATCH, *, last: bool = False) -> Tensor:
    """The reverse of `patchify`, to `size` = (c, h, w), of the first patches of `x`."""
    c, h, w = size
    rows, columns = h // patch, w // patch
    x = x[: rows * columns]
    if last:
        return x.reshape(rows, columns, patch, patch, c).permute(4, 0, 2, 1, 3).reshape(c, h, w)
    return x.reshape(rows, columns, c, patch, patch).permute(2, 0, 3, 1, 4).reshape(c, h, w)
