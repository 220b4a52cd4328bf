"""Which pixels and which latents are drawn anew, and what a picture is with its margins."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from omnimuse.core.request import Region
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.pipeline.region import canvas, cells_anew, pixels_anew


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3))


def test_margins_go_on_as_the_edges_end_and_the_picture_is_kept_to_the_bit() -> None:
    image = picture(4, 3)
    large = np.asarray(canvas(picture_of(image), Region(pad=(2, 1, 3, 0))))
    assert large.shape == (4, 9, 3)
    assert np.array_equal(large[1:, 2:6], np.asarray(image))
    assert (large[1:, :2] == np.asarray(image)[:, :1]).all()
    assert np.array_equal(np.asarray(canvas(picture_of(image), None)), np.asarray(image))


def test_what_lies_beyond_the_edges_is_drawn_anew_and_within_them_what_the_mask_says() -> None:
    image, mask = picture_of(picture(4, 2)), Image.new("L", (4, 2), 0)
    mask.putpixel((3, 1), 255)
    beyond = pixels_anew(image, Region(pad=(0, 0, 2, 1)), (6, 3)).int().tolist()
    assert beyond == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [1] * 6]
    both = pixels_anew(image, Region(mask_of(mask), (0, 0, 2, 1)), (6, 3)).int().tolist()
    assert both == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [1] * 6]


def test_half_the_brightness_is_white_and_a_cell_goes_by_its_first_pixel() -> None:
    image, mask = picture_of(picture(4, 4)), Image.new("L", (4, 4), 127)
    for place in ((0, 0), (3, 3)):
        mask.putpixel(place, 128)
    cells = cells_anew(image, Region(mask_of(mask)), (4, 4), (2, 2))
    assert torch.equal(cells, torch.tensor([[True, False], [False, False]]))
