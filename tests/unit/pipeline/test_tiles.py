"""What decoding a picture in tiles takes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from omnimuse.pipeline.tiles import Tiling
from omnimuse.worker.place import most_allocated


def decode(latents: Tensor) -> Tensor:
    """Three numbers for each of the 8x8 pixels of a cell."""
    return latents[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.mark.costly
def test_beside_a_picture_that_is_made_of_tiles_there_are_two_rows_of_them() -> None:
    latents, picture, rows = torch.rand(1, 4, 128, 128), 3 * 1024**2 * 4, 2 * 22 * 3 * 64**2 * 4
    took = most_allocated(torch.device("cpu"), partial(Tiling(8, 64).decode, decode, latents))
    assert took is not None and picture + rows / 2 < max(took.values()) < picture + rows * 1.1
