"""What Lucy Edit is to be given, and which network belongs to it. Without torch."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Clip, Door, Picture
from omnimuse.models.lucy_edit.spec import SPEC
from omnimuse.worker.warm_up import warm_up_ask

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {"in_channels": 96, "out_channels": 48},
    "vae": {"scale_factor_spatial": 16, "scale_factor_temporal": 4},
    "scheduler": {},
    "options": {"expand_timesteps": True},
}
DOOR = Door.of(SPEC, CONFIGS, "decart-ai/Lucy-Edit-Dev")
FILM = Clip(96, 64, (b"",) * 9, fps=12.0)


def test_it_must_be_given_one_video_and_makes_as_many_frames() -> None:
    made = DOOR.make_request(Ask({"prompt": "x", "videos": [FILM]}), 0.0, 1)
    assert (made.params.num_frames, made.params.fps, made.params.strength) == (9, 12.0, None)
    assert DOOR.tasks == ("video-to-video",)
    with pytest.raises(RequestError, match=r"0 videos were given; lucy_edit needs at least 1 \(`videos`\)"):
        DOOR.make_request(Ask("x"), 0.0, 1)
    with pytest.raises(RequestError, match="2 videos were given; lucy_edit takes at most 1"):
        DOOR.make_request(Ask({"prompt": "x", "videos": [FILM, FILM]}), 0.0, 1)
    with pytest.raises(RequestError, match="works from text only"):
        DOOR.make_request(Ask({"prompt": "x", "videos": [FILM], "images": [Picture(8, 8, b"")]}), 0.0, 1)
    with pytest.raises(RequestError, match="strength means nothing to lucy_edit"):
        DOOR.make_request(Ask({"prompt": "x", "videos": [FILM]}, DiffusionParams(strength=0.5)), 0.0, 1)


def test_a_warm_up_brings_a_video() -> None:
    ask = warm_up_ask("small", DOOR)
    assert ask is not None and isinstance(ask.prompt, dict)
    assert [len(video.frames) for video in ask.prompt["videos"]] == [1]


def test_a_network_that_sees_no_video_is_refused() -> None:
    plain = CONFIGS | {"transformer": {"in_channels": 48, "out_channels": 48}}
    with pytest.raises(ModelError, match=r"in_channels=48 with .* a network that changes a video takes 96"):
        Door.of(SPEC, plain, "lucy")
