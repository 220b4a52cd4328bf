"""In which size FLUX.1 Kontext is shown a picture, and in which it draws. Without torch."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Picture
from omnimuse.models.flux_kontext.spec import PREFERRED, SPEC, KontextParams, shown_size

CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [128, 256, 512, 512]},
    "transformer": {"guidance_embeds": True},
}
DOOR = Door.of(SPEC, CONFIGS, "black-forest-labs/FLUX.1-Kontext-dev")


def test_the_sizes_it_learned_from_are_the_references() -> None:
    assert list(PREFERRED) == PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize(
    ("size", "shown"),
    [((512, 512), (1024, 1024)), ((4000, 3000), (1184, 880)), ((90, 160), (720, 1456)), ((10, 4000), (672, 1568))],
)
def test_a_picture_is_shown_in_the_learned_size_with_the_nearest_proportions(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert shown_size(size, 16, KontextParams()) == shown


def test_without_that_a_picture_is_shown_in_its_own_size_in_whole_tokens() -> None:
    assert shown_size((100, 50), 16, KontextParams(auto_resize=False)) == (96, 48)


def test_what_is_drawn_has_the_default_area_and_the_pictures_proportions() -> None:
    ask = Ask({"prompt": "make it red", "images": [Picture(1600, 900, b"png")]})
    params = DOOR.make_request(ask, 0.0, 1).params
    assert (params.width, params.height) == (1360, 768)
    assert (params.guidance_scale, params.num_inference_steps, params.strength) == (2.5, 28, 1.0)


def test_a_strength_needs_a_picture_and_there_is_one_at_most() -> None:
    with pytest.raises(RequestError, match="there is no picture; give one"):
        DOOR.make_request(Ask("a", DiffusionParams(strength=0.5)), 0.0, 1)
    pictures = [Picture(64, 64, b"png")] * 2
    with pytest.raises(RequestError, match="2 pictures were given; flux_kontext takes at most 1"):
        DOOR.make_request(Ask({"prompt": "a", "images": pictures}), 0.0, 1)
