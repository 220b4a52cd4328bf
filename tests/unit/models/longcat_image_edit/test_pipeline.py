"""In which size LongCat-Image-Edit draws, and what its prompts become."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import calculate_dimensions

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Picture, Request
from omnimuse.models.longcat_image_edit.pipeline import read_sizes
from omnimuse.models.longcat_image_edit.spec import SPEC

DOOR = Door.of(SPEC, {"vae": {"block_out_channels": [128, 256, 512, 512]}}, "meituan-longcat/LongCat-Image-Edit")


def made(*sizes: tuple[int, int], **choices: Any) -> Request:
    pictures = [Picture(*size, b"png") for size in sizes]
    return DOOR.make_request(Ask({"prompt": "a star", "images": pictures}, DiffusionParams(**choices)), 0.0, 1)


@pytest.mark.parametrize("size", [(512, 512), (4000, 3000), (90, 160), (1600, 900), (300, 100), (64, 256)])
def test_sizes_are_those_of_the_reference(size: tuple[int, int]) -> None:
    request = made(size)
    width, height = calculate_dimensions(1024 * 1024, size[0] / size[1])
    assert (request.params.width, request.params.height) == (width, height)
    assert read_sizes(request, request.images[0]) == ((width, height), (width // 2, height // 2))


def test_a_side_that_was_chosen_decides() -> None:
    params = made((400, 200), width=512).params
    assert (params.width, params.height) == (512, 256)


def test_it_changes_one_picture_and_has_no_norm_to_choose() -> None:
    with pytest.raises(RequestError, match="0 pictures were given; longcat_image_edit needs at least 1"):
        made()
    with pytest.raises(RequestError, match="2 pictures were given; longcat_image_edit takes at most 1"):
        made((64, 64), (64, 64))
    with pytest.raises(RequestError, match="extra has no field 'enable_cfg_renorm'"):
        made((64, 64), extra={"enable_cfg_renorm": False})
