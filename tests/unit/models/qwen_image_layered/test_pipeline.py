"""What the Qwen-Image-Layered checkpoint lets people ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import calculate_dimensions

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Picture, Request
from omnimuse.diffusion.schedules import FlowSchedule
from omnimuse.models.qwen_image_layered.pipeline import frames, shape, shift
from omnimuse.models.qwen_image_layered.spec import SPEC, combination

CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"temperal_downsample": [False, True, True]},
    "scheduler": {"shift_terminal": 0.02},
    "transformer": {"in_channels": 64},
}
DOOR = Door.of(SPEC, CONFIGS, "Qwen/Qwen-Image-Layered")


def made(*sizes: tuple[int, int], **choices: Any) -> Request:
    pictures = [Picture(*size, b"png") for size in sizes]
    return DOOR.make_request(Ask({"prompt": "a star", "images": pictures}, DiffusionParams(**choices)), 0.0, 1)


@pytest.mark.parametrize("size", [(512, 512), (4000, 3000), (90, 160)])
def test_sizes_and_defaults_are_those_of_the_reference(size: tuple[int, int]) -> None:
    request = made(size)
    assert (request.params.width, request.params.height) == calculate_dimensions(640 * 640, size[0] / size[1])
    assert (request.params.num_inference_steps, request.params.true_cfg_scale) == (50, 4.0)
    assert request.branches == ("positive", "negative")
    assert not combination(request.extra).match_norm


def test_the_whole_picture_is_drawn_before_the_layers_and_the_shift_goes_by_one_of_them() -> None:
    request = made((64, 64), width=64, height=32, extra={"layers": 3})
    assert frames(request) == 4
    assert shape(CONFIGS, request) == (4, 16, 4, 8)
    assert (shift(FlowSchedule(), 256, 50), shift(FlowSchedule(), 1024, 4)) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("sizes", "choices", "message"),
    [
        ([], {}, "0 pictures were given; qwen_image_layered needs at least 1"),
        ([(64, 64)] * 2, {}, "2 pictures were given; qwen_image_layered takes at most 1"),
        ([(64, 64)], {"extra": {"layers": 0}}, "extra.layers=0 is not allowed; use a number from 1 to 16"),
    ],
)
def test_what_the_checkpoint_cannot_do_is_refused(
    sizes: list[tuple[int, int]], choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        made(*sizes, **choices)


def test_every_layer_counts_when_memory_is_compared() -> None:
    small = replace(DOOR, memory=DOOR.defaults.height * DOOR.defaults.width * 24 * 3)  # type: ignore[operator]
    ask = {"prompt": "a star", "images": [Picture(640, 640, b"png")]}
    assert small.make_request(Ask(ask, DiffusionParams(extra={"layers": 3})), 0.0, 1)
    with pytest.raises(RequestError, match="640x640, 4 pictures, 1 outputs need at least"):
        small.make_request(Ask(ask, DiffusionParams(extra={"layers": 4})), 0.0, 1)
