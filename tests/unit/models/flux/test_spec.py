"""What the doors of FLUX.1 checkpoints let in, without torch."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door
from omnimuse.models.flux.spec import SPEC


def door(model: str, guidance_embeds: bool) -> Door:
    configs: dict[str, dict[str, Any]] = {
        "vae": {"block_out_channels": [128, 256, 512, 512]},
        "transformer": {"guidance_embeds": guidance_embeds},
    }
    return Door.of(SPEC, configs, model)


DEV = door("black-forest-labs/FLUX.1-dev", True)
SCHNELL = door("black-forest-labs/FLUX.1-schnell", False)


def refused(at: Door, **choices: Any) -> str:
    with pytest.raises(RequestError) as caught:
        at.make_request(Ask("a circle", DiffusionParams(**choices)), 0.0, 1)
    assert caught.value.param == next(iter(choices))
    return str(caught.value)


def test_defaults_are_those_of_the_published_checkpoints() -> None:
    dev, schnell = DEV.defaults, SCHNELL.defaults
    assert (dev.num_inference_steps, dev.guidance_scale, dev.true_cfg_scale, dev.max_sequence_length) == (
        28,
        3.5,
        1,
        512,
    )
    assert (schnell.num_inference_steps, schnell.guidance_scale, schnell.max_sequence_length) == (4, 0.0, 256)


def test_a_checkpoint_without_guidance_input_refuses_a_guidance_scale() -> None:
    assert "guidance_scale=3.5 does not fit this checkpoint; use 0.0" in refused(SCHNELL, guidance_scale=3.5)
    assert SCHNELL.make_request(Ask("a", DiffusionParams(guidance_scale=0.0)), 0.0, 1).params.guidance_scale == 0.0
    assert DEV.make_request(Ask("a", DiffusionParams(guidance_scale=7.0)), 0.0, 1).params.guidance_scale == 7.0


def test_an_unknown_checkpoint_without_guidance_input_has_no_guidance_by_default() -> None:
    assert door("my-own", False).defaults.guidance_scale == 0.0


def test_texts_are_bounded_as_the_checkpoints_learned_them() -> None:
    assert "max_sequence_length=257 is out of range" in refused(SCHNELL, max_sequence_length=257)
    assert "max_sequence_length=513 is out of range" in refused(DEV, max_sequence_length=513)


def test_sides_are_whole_patches() -> None:
    assert "height=1000 is not a multiple of 16; use 992 or 1008" in refused(DEV, height=1000)
