"""FLUX.2 against the reference with a picture that is larger than its network is shown: over a million pixels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.params import DiffusionParams
from tests.checkpoints.flux2 import reference
from tests.checkpoints.wishes import Wish, photo


@pytest.mark.costly
def test_a_picture_of_more_than_a_million_pixels_is_shown_as_the_reference_shows_it(
    tiny: Callable[[str], Path],
) -> None:
    folder = tiny("Flux2KleinPipeline-distilled")
    params = DiffusionParams(num_inference_steps=2, height=64, width=64, max_sequence_length=24, seed=9)
    wish = Wish("a red circle", None, params, photo(64, 90), others=(photo(1200, 1000),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        [expected] = reference(folder, [wish], "pt")
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        [result] = omni.generate([wish.asked], [replace(params, output_type="pt")], progress=False)
    assert result.error is None, result.error
    assert float((result.output[0] - expected).abs().max()) <= 1e-5
