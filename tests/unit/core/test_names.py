"""Names of other programs are understood by their meaning first, then by their spelling."""

from __future__ import annotations

from dataclasses import fields

import pytest

from omnimuse.core.names import MEANINGS, meant
from omnimuse.core.params import DiffusionParams

PARAMS = [part.name for part in fields(DiffusionParams)]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("steps", "num_inference_steps"),
        ("num-inference-steps", "num_inference_steps"),
        ("--sampling_steps", "num_inference_steps"),
        ("sampling_step", "num_inference_steps"),
        ("cfg", "guidance_scale"),
        ("guidence_scale", "guidance_scale"),
        ("Num_Images", "num_outputs_per_prompt"),
        ("frames", "num_frames"),
        ("strenght", "strength"),
        ("colour", None),
    ],
)
def test_a_name_is_understood_by_meaning_before_spelling(name: str, ours: str | None) -> None:
    assert meant(name, PARAMS) == ours


def test_a_meaning_that_is_not_allowed_here_is_not_offered() -> None:
    assert meant("steps", ["stops", "height"]) == "stops"
    assert meant("steps", ["height"]) is None
    assert meant("step", ["stop", "height"]) == "stop"


def test_a_name_that_is_nearer_to_what_others_call_a_setting_is_taken_for_that() -> None:
    assert meant("step", ["stop", "style", "num_inference_steps"]) == "num_inference_steps"
    assert meant("stp", ["stop", "num_inference_steps"]) == "stop"


def test_no_name_of_ours_means_something_else_elsewhere() -> None:
    assert not set(PARAMS) & MEANINGS.keys()
