"""What FLUX.1 Fill is to be told, and which network belongs to which kind of FLUX.1. Without torch."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.request import Ask, Door, Picture
from omnimuse.models.flux.spec import SPEC as FLUX
from omnimuse.models.flux_fill.spec import SPEC

CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16},
    "transformer": {"guidance_embeds": True, "in_channels": 384, "out_channels": 64},
}
DOOR = Door.of(SPEC, CONFIGS, "black-forest-labs/FLUX.1-Fill-dev")
PICTURE = Picture(768, 512, b"")


def test_it_is_told_which_part_of_a_picture_to_fill_or_by_how_much_it_grows() -> None:
    made = DOOR.make_request(Ask({"prompt": "x", "images": [PICTURE], "pad": [0, 256, 0, 0]}), 0.0, 1)
    assert (made.params.width, made.params.height) == (1024, 1024)
    assert (made.params.strength, made.params.guidance_scale, made.params.num_inference_steps) == (1.0, 30.0, 50)
    with pytest.raises(RequestError, match="flux_fill fills in a part of a picture, and nothing says which"):
        DOOR.make_request(Ask({"prompt": "x", "images": [PICTURE]}), 0.0, 1)
    with pytest.raises(RequestError, match="flux_fill needs at least 1"):
        DOOR.make_request(Ask("x"), 0.0, 1)
    assert DOOR.tasks == ("image-to-image",)


def test_a_network_of_another_kind_is_refused_with_what_would_do() -> None:
    plain = CONFIGS | {"transformer": {"guidance_embeds": True, "in_channels": 64}}
    with pytest.raises(ModelError, match=r"in_channels=64, out_channels=None; a network that fills .* has 384 and 64"):
        Door.of(SPEC, plain, "fill")
    with pytest.raises(
        ModelError, match=r"in_channels=384, out_channels=64; such a network is shown more than it draws"
    ):
        Door.of(FLUX, CONFIGS, "dev")
    assert Door.of(FLUX, plain, "dev").limits.min_images == 0
