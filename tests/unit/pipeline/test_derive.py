"""Stages that are one function: when it is called, what it writes, and which states share that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch

from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Request
from omnimuse.core.sources import Region
from omnimuse.media.clip import clip_of
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.models.wan_vace.spec import SPEC
from omnimuse.pipeline.clips import packed
from omnimuse.pipeline.derive import Derive, EncodeGiven
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.video import to_pixels
from tests.checkpoints.wishes import film, halves, photo

CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {"in_channels": 16, "vace_in_channels": 96},
    "vae": {},
    "scheduler": {},
    "options": {},
}
CTX = cast(Context, SimpleNamespace())  # neither stage looks at it


def asked(prompt: dict[str, Any], **params: Any) -> Request:
    door = Door.of(SPEC, CONFIGS, "")
    return door.make_request(Ask({"prompt": "x", **prompt}, DiffusionParams(**params)), 0.0, 1)


def states(*requests: Request) -> list[State]:
    return [State(request, 0, strict=True) for request in requests]


def told(ctx: Context, request: Request) -> tuple[int, int]:
    return len(request.images), len(request.videos)


def test_nothing_is_encoded_where_nothing_came_unless_it_always_is() -> None:
    with_picture, without = states(asked({"images": [picture_of(photo(16, 16))]}), asked({}))
    stage = EncodeGiven("known", told)
    for state in (with_picture, without):
        with state.opened_for(stage):
            stage.run(CTX, [state])
    assert (with_picture["known"], without["known"]) == ((1, 0), None)
    always = replace(stage, always=True)
    [state] = states(asked({}))
    with state.opened_for(always):
        always.run(CTX, [state])
    assert state["known"] == (0, 0)


def test_states_share_what_is_encoded_if_all_that_may_be_asked_for_is_the_same() -> None:
    stage = EncodeGiven("known", told, reads=("videos", "images", "region"))
    clip, picture = clip_of(film(32, 16, 5)), picture_of(photo(16, 16))
    given = {"videos": [clip], "images": [picture]}
    usual = {"width": 32, "height": 16, "num_frames": 5}
    first, same, *others = states(
        asked(given, **usual, seed=1),
        asked(given, **usual, seed=2),
        asked({"videos": [clip]}, **usual),
        asked({**given, "images": [picture, picture]}, **usual),
        asked({**given, "mask": mask_of(halves(32, 16))}, **usual),
        asked(given, **{**usual, "num_frames": 1}),
        asked(given, **{**usual, "width": 16}),
        asked(given, **usual, extra={"conditioning_scale": 0.5}),
    )
    assert stage.key(CTX, first) == stage.key(CTX, same)
    keys = {stage.key(CTX, state) for state in (first, *others)}
    assert len(keys) == 1 + len(others)
    assert isinstance(others[2].request.region, Region)
    assert replace(stage, slot="other").key(CTX, first) != stage.key(CTX, first)


def test_a_function_of_slots_writes_them_in_order_and_is_shared_only_where_that_is_said() -> None:
    def make(ctx: Context, state: State) -> Sequence[object]:
        return [state["prompt"] + "1", state["prompt"] + "2"]

    stage = Derive(make, "twice", ("prompt",), ("one", "two"))
    [state] = states(asked({}))
    with state.opened_for(stage):
        stage.run(CTX, [state])
    assert (state["one"], state["two"]) == ("x1", "x2")
    assert stage.key(CTX, state) is None
    shared = replace(stage, same=lambda ctx, state: state["prompt"])
    assert shared.key(CTX, state) == (shared, "x")


def test_frames_are_packed_for_an_autoencoder_as_it_unpacks_them() -> None:
    clip = torch.rand(3, 2, 8, 6) * 2 - 1
    assert torch.allclose(to_pixels(packed(clip, 2), 2), clip.transpose(0, 1) * 0.5 + 0.5, atol=1e-6)
    assert torch.equal(packed(clip, 1), clip)
