"""What a checkpoint of Stable Diffusion 3 says of itself: which it is, how large its pictures are."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door
from omnimuse.models.stable_diffusion_3.spec import SKIPPED, SPEC
from omnimuse.models.stable_diffusion_3.transformer import Sd3Config

LARGE: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": [], "pos_embed_max_size": 192}
VAE = {"block_out_channels": [128, 256, 512, 512]}


@pytest.mark.parametrize(
    ("changes", "name", "sure"),
    [
        ({}, "stable_diffusion_3", False),  # large and large turbo have the same configurations
        ({"dual_attention_layers": [0, 1, 2]}, "Stable-Diffusion-3.5-medium", True),
        ({"qk_norm": None}, "Stable-Diffusion-3-medium", True),
    ],
)
def test_the_transformer_tells_the_published_checkpoints_apart_as_far_as_it_can(
    changes: dict[str, Any], name: str, sure: bool
) -> None:
    found = SPEC.recognise((), {"transformer": LARGE | changes})
    assert (found.variant.name, found.sure) == (name, sure)


def test_a_picture_has_no_more_patches_a_side_than_there_are_places() -> None:
    door = Door.of(SPEC, {"transformer": LARGE | {"pos_embed_max_size": 96}, "vae": VAE}, "")
    assert door.make_request(Ask("a", DiffusionParams(width=1536, height=64)), 0.0, 1).params.width == 1536
    with pytest.raises(RequestError, match="1552"):
        door.make_request(Ask("a", DiffusionParams(width=1552, height=64)), 0.0, 1)


def test_guidance_by_skipped_layers_needs_guidance_and_lasts_for_a_part_of_the_steps() -> None:
    door, extra = Door.of(SPEC, {"transformer": LARGE, "vae": VAE}, ""), {"skip_guidance_layers": [7, 8, 9]}
    with pytest.raises(RequestError, match="skip_guidance_layers does nothing while guidance_scale is 1; choose"):
        door.make_request(Ask("a", DiffusionParams(guidance_scale=1.0, extra=extra)), 0.0, 1)
    made, rule = door.make_request(Ask("a", DiffusionParams(extra=extra)), 0.0, 1), SPEC.guidance
    assert rule is not None
    steps = [rule.branches(made.branches, made.extra, 7.0, 0.0, (index, 28)) for index in range(28)]
    assert [index for index, branches in enumerate(steps) if SKIPPED in branches] == [1, 2, 3, 4, 5]
    assert rule.branches(made.branches, made.extra, 1.0, 0.0, (3, 28)) == ("positive",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_projection_dim": 1152}, "caption_projection_dim=1152; it must be the width, 2432"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is not supported; only rms_norm is"),
        ({"dual_attention_layers": [0, 37]}, r"dual_attention_layers=\(0, 37\); they must be among the 38 blocks"),
        ({"patch_size": 4}, "patch_size=4 is not supported; only 2 is"),
    ],
)
def test_a_variant_that_is_not_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Sd3Config.from_dict(changes)
