"""What the Qwen-Image-Edit checkpoints let people ask for, and what their prompts and pictures become."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Picture, Request
from omnimuse.models.qwen_image_edit import pipeline, spec
from omnimuse.models.qwen_image_edit_plus import pipeline as plus_pipeline
from omnimuse.models.qwen_image_edit_plus import spec as plus_spec
from tests.checkpoints import qwen_image_edit

CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"temperal_downsample": [False, True, True]},
    "scheduler": {"shift_terminal": 0.02},
    "transformer": {},
}
EDIT = Door.of(spec.SPEC, CONFIGS, "Qwen/Qwen-Image-Edit")
PLUS = Door.of(plus_spec.SPEC, CONFIGS, "Qwen/Qwen-Image-Edit-2509")


def made(door: Door, *sizes: tuple[int, int], **choices: Any) -> Request:
    pictures = [Picture(*size, b"png") for size in sizes]
    return door.make_request(Ask({"prompt": "a star", "images": pictures}, DiffusionParams(**choices)), 0.0, 1)


def test_defaults_are_those_of_the_published_checkpoints() -> None:
    for door, steps, strength in ((EDIT, 50, 1.0), (PLUS, 40, None)):
        params = made(door, (64, 64)).params
        assert (params.num_inference_steps, params.true_cfg_scale) == (steps, 4.0)
        assert (params.max_sequence_length, params.strength) == (None, strength)


@pytest.mark.parametrize("size", [(512, 512), (4000, 3000), (90, 160), (160, 10)])
def test_sizes_are_those_of_the_reference(size: tuple[int, int]) -> None:
    request = made(EDIT, size)
    *expected, _ = pipeline_qwenimage_edit.calculate_dimensions(1024 * 1024, size[0] / size[1])
    assert [request.params.width, request.params.height] == expected
    assert list(pipeline.shown_size(request, request.images[0])) == expected
    several = made(PLUS, (700, 300), size)
    read = pipeline_qwenimage_edit_plus.calculate_dimensions(384 * 384, size[0] / size[1])
    assert [several.params.width, several.params.height] == expected, "those of the last picture"
    assert plus_pipeline.read_sizes(several, several.images[1]) == (read,)


@pytest.mark.parametrize(
    ("door", "sizes", "choices", "message"),
    [
        (EDIT, [], {}, "0 pictures were given; qwen_image_edit needs at least 1"),
        (EDIT, [(64, 64)] * 2, {}, "2 pictures were given; qwen_image_edit takes at most 1"),
        (PLUS, [(64, 64)] * 4, {}, "4 pictures were given; qwen_image_edit_plus takes at most 3"),
        (PLUS, [(64, 64), (10, 161)], {}, "picture 2 has 10 x 161 pixels; the longer side may be 16 times the shorter"),
        (EDIT, [(64, 64)], {"max_sequence_length": 64}, "the prompt is read whole, together with the picture"),
        (PLUS, [(64, 64)], {"strength": 0.5}, "strength means nothing to qwen_image_edit_plus"),
        (EDIT, [(64, 64)], {"extra": {"shown_area": 1000}}, "extra.shown_area=1000 is not allowed"),
        (EDIT, [(64, 64)], {"extra": {"read_area": 4096}}, "extra has no field 'read_area'"),
    ],
)
def test_what_the_checkpoints_cannot_do_is_refused(
    door: Door, sizes: list[tuple[int, int]], choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        made(door, *sizes, **choices)


def test_the_later_checkpoint_is_known_by_what_it_says() -> None:
    told = plus_spec.SPEC.recognise([], {**CONFIGS, "transformer": {"zero_cond_t": True}})
    assert (told.variant.name, told.sure) == ("Qwen-Image-Edit-2511", True)
    assert not plus_spec.SPEC.recognise([], CONFIGS).sure


def test_the_tokens_before_the_prompt_are_as_many_as_are_dropped() -> None:
    tokenizer = qwen_image_edit.tokenizer()
    assert len(tokenizer(pipeline.BEFORE).input_ids) == pipeline.DROPPED
    assert pipeline.framed("{} red", 1) == f"{pipeline.BEFORE}{pipeline.A_PICTURE}{{}} red{pipeline.AFTER}"
    assert f"Picture 1: {pipeline.A_PICTURE}Picture 2: {pipeline.A_PICTURE}a" in plus_pipeline.framed("a", 2)
