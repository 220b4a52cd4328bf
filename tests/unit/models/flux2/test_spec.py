"""What the doors of FLUX.2 Klein checkpoints let in, and in which size pictures are shown and drawn. Without torch."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Picture, Request
from omnimuse.core.spec import OPTIONS
from omnimuse.models.flux2.spec import SPEC, shrunk


def configs(distilled: bool) -> dict[str, dict[str, Any]]:
    return {
        "vae": {"block_out_channels": [128, 256, 512, 512]},
        "transformer": {"guidance_embeds": False},
        OPTIONS: {"is_distilled": distilled},
    }


def door(distilled: bool) -> Door:
    return Door.of(SPEC, configs(distilled), SPEC.recognise((), configs(distilled)).variant)


DISTILLED, BASE = door(True), door(False)


def asked(at: Door, *sizes: tuple[int, int], **choices: Any) -> Request:
    images = [Picture(*size, b"png") for size in sizes]
    return at.make_request(Ask({"prompt": "a circle", "images": images}, DiffusionParams(**choices)), 0.0, 1)


def test_defaults_are_those_of_the_published_checkpoints_and_follow_from_what_they_say() -> None:
    assert (DISTILLED.defaults.num_inference_steps, DISTILLED.defaults.guidance_scale) == (4, 1.0)
    assert (BASE.defaults.num_inference_steps, BASE.defaults.guidance_scale) == (50, 4.0)
    assert (BASE.defaults.width, BASE.defaults.height, BASE.defaults.max_sequence_length) == (1024, 1024, 512)
    named = SPEC.variant("black-forest-labs/FLUX.2-klein-base-9B")
    assert named.name == "FLUX.2-klein-base"


def test_a_distilled_checkpoint_refuses_guidance() -> None:
    with pytest.raises(RequestError, match=r"guidance_scale=4\.0 does not fit this checkpoint; use 1\.0"):
        asked(DISTILLED, guidance_scale=4.0)
    assert asked(BASE, guidance_scale=2.0).params.guidance_scale == 2.0


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((1024, 1024), (1024, 1024)),
        ((700, 500), (688, 496)),  # cropped
        ((4000, 3000), (1168, 880)),  # shrunk to a megapixel first: 1182 x 886
        ((64, 512), (64, 512)),
    ],
)
def test_what_is_drawn_has_the_size_in_which_the_first_picture_is_shown(
    size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    params = asked(BASE, size, (64, 64)).params
    assert (params.width, params.height) == drawn


def test_a_side_that_was_chosen_counts_and_the_other_is_the_pictures() -> None:
    params = asked(BASE, (700, 500), width=320).params
    assert (params.width, params.height) == (320, 496)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([(64, 64), (63, 64)], "picture 2 has 63 x 64 pixels; a side must have at least 64"),
        ([(64, 513)], "picture 1 has 64 x 513 pixels; the longer side may be 8 times the shorter"),
        ([(64, 64)] * 11, "11 pictures were given; flux2 takes at most 10"),
    ],
)
def test_pictures_that_the_model_is_not_shown_are_refused(sizes: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        asked(BASE, *sizes)
    assert caught.value.param == "images"


def test_a_shrunk_picture_has_at_most_a_megapixel() -> None:
    assert shrunk((1024, 1025)) == (1023, 1024)
    assert shrunk((1000, 1048)) == (1000, 1048)


def test_a_picture_stands_in_for_the_first_steps_if_a_strength_says_so_and_may_be_masked() -> None:
    assert asked(BASE, (64, 64), strength=0.5, num_inference_steps=10).steps == 5
    assert asked(BASE, (64, 64), num_inference_steps=10).steps == 10
    assert asked(BASE).params.strength is None
    scheduler = {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}
    assert Door.of(SPEC, configs(False) | scheduler, "").masks
