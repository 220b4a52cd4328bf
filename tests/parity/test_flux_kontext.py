"""FLUX.1 Kontext against the reference with its picture in one of the sizes that the network learned from."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.params import DiffusionParams
from tests.checkpoints import flux
from tests.checkpoints.flux import kontext_reference
from tests.checkpoints.wishes import Wish, photo


@pytest.mark.costly
def test_a_picture_in_a_size_that_the_network_learned_from_gives_the_references_picture(tmp_path: Path) -> None:
    folder = flux.build(tmp_path / "tiny", arch="FluxKontextPipeline")
    params = DiffusionParams(
        num_inference_steps=2, guidance_scale=3.0, height=64, width=96, seed=3, max_sequence_length=16
    )
    wish = Wish("make it red", None, params, photo(90, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        [expected] = kontext_reference(folder, [wish], "pt")
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        [result] = omni.generate([wish.asked], [replace(params, output_type="pt")], progress=False)
    assert result.error is None, result.error
    assert float((result.output[0] - expected).abs().max()) <= 1e-5
