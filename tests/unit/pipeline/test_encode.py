"""A picture that comes with a prompt is encoded once, however many outputs start from it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from omnimuse import DiffusionParams, Omni
from tests.checkpoints import flux2


def test_a_picture_is_encoded_once_for_all_outputs_and_each_draws_its_own_latents() -> None:
    encoded: list[Tensor] = []
    with Omni("omnimuse/shapes", dtype="float32", device="cpu") as omni:
        vae = omni.engine.runner.pipeline.ctx.components["vae"]
        vae.encoder.register_forward_hook(lambda module, given, made: encoded.append(made))
        prompt = {"prompt": "a red circle", "images": [Image.new("RGB", (64, 64), "blue")]}
        params = DiffusionParams(
            num_inference_steps=2, height=64, width=64, seed=1, num_outputs_per_prompt=3, output_type="latent"
        )
        [result] = omni.generate(prompt, params, progress=False)
    assert len(encoded) == 1
    assert not torch.equal(result.output[0], result.output[1])


def test_pictures_that_are_shown_are_encoded_once_and_the_result_tells_their_sizes(tmp_path: Path) -> None:
    folder = str(flux2.build(tmp_path / "tiny", distilled=True))
    params = DiffusionParams(num_inference_steps=1, seed=1, num_outputs_per_prompt=2, max_sequence_length=16)
    encoded: list[Tensor] = []
    with Omni(folder, dtype="float32", device="cpu") as omni:
        vae = omni.engine.runner.pipeline.ctx.components["vae"]
        vae.encoder.register_forward_hook(lambda module, given, made: encoded.append(made))
        pictures = [Image.new("RGB", size, "blue") for size in ((100, 70), (64, 130))]
        [result] = omni.generate({"prompt": "a star", "images": pictures}, params, progress=False)
    assert len(encoded) == 2
    assert result.shown == ((96, 64), (64, 128))
    assert [image.size for image in result.images] == [(96, 64)] * 2
    assert (result.params.width, result.params.height) == (96, 64)
