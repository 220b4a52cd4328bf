"""What FLUX.1 Depth and Canny are to be given, and which network belongs to them. Without torch."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Picture
from omnimuse.models.flux_control.spec import SPEC

CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16},
    "transformer": {"guidance_embeds": True, "in_channels": 128, "out_channels": 64},
}
DOOR = Door.of(SPEC, CONFIGS, "black-forest-labs/FLUX.1-Depth-dev")
PICTURE = Picture(768, 512, b"")


def test_it_follows_one_picture_whole_and_each_kind_has_its_scale() -> None:
    made = DOOR.make_request(Ask({"prompt": "x", "images": [PICTURE]}), 0.0, 1)
    assert (made.params.guidance_scale, made.params.num_inference_steps, made.params.strength) == (10.0, 30, None)
    canny = Door.of(SPEC, CONFIGS, "black-forest-labs/FLUX.1-Canny-dev").defaults
    assert (canny.guidance_scale, canny.num_inference_steps) == (30.0, 50)
    with pytest.raises(RequestError, match="flux_control needs at least 1"):
        DOOR.make_request(Ask("x"), 0.0, 1)
    with pytest.raises(RequestError, match="strength means nothing to flux_control"):
        DOOR.make_request(Ask({"prompt": "x", "images": [PICTURE]}, DiffusionParams(strength=0.5)), 0.0, 1)
    with pytest.raises(RequestError, match="mask means nothing to flux_control"):
        DOOR.make_request(Ask({"prompt": "x", "images": [PICTURE], "mask": PICTURE}), 0.0, 1)


def test_a_network_of_another_kind_is_refused_with_what_would_do() -> None:
    plain = CONFIGS | {"transformer": {"guidance_embeds": True, "in_channels": 64}}
    with pytest.raises(ModelError, match=r"in_channels=64, out_channels=None; a network that follows .* 128 and 64"):
        Door.of(SPEC, plain, "depth")
