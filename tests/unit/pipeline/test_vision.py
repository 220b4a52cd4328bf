"""What an image encoder is shown: prepared as the published processor does it, by Pillow's arithmetic; seen once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from omnimuse import Config, DiffusionParams, ModelConfig, Omni
from omnimuse.core.errors import ModelError
from omnimuse.pipeline.vision import Preparation
from omnimuse.worker.build import build
from tests.checkpoints import wan
from tests.checkpoints.wishes import photo

SMALL = DiffusionParams(num_frames=5, height=32, width=32, num_inference_steps=2, seed=1, output_type="latent")


def published(config: Mapping[str, Any], width: int, height: int) -> torch.Tensor:
    """What transformers' processor over Pillow makes of a picture of that size."""
    return CLIPImageProcessorPil(**config)(photo(width, height), return_tensors="pt").pixel_values[0]


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (200, 301), (37, 500), (501, 333), (8, 9), (1000, 223)])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 31}, "resample": 1},
        {
            "size": 32,
            "crop_size": 32,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.5, 0.6, 0.7],
            "rescale_factor": 0.01,
        },
    ],
    ids=["CLIP's own", "a smaller crop, another filter", "other numbers"],
)
def test_a_picture_is_prepared_as_the_published_processor_does_it_to_the_bit(
    config: dict[str, Any], size: tuple[int, int]
) -> None:
    found = Preparation.of(config)(photo(*size))
    assert found.dtype == torch.float32
    assert torch.equal(found, published(config, *size))


@pytest.mark.parametrize("size", [(384, 384), (300, 200), (37, 500)])
def test_a_processor_of_fixed_sides_is_shown_all_of_a_picture(size: tuple[int, int]) -> None:
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 42})
    found = Preparation.of(processor.to_dict())(photo(*size))
    assert torch.equal(found, processor(photo(*size), return_tensors="pt").pixel_values[0])


def test_the_file_that_the_published_processor_writes_is_read() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=32)
    assert Preparation.of(processor.to_dict()) == Preparation(48, (32, 32))
    assert Preparation.of(CLIPImageProcessorPil().to_dict()) == Preparation()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop=False needs a size with height and width, and has 224"),
        ({"size": {"height": 20, "width": 20}, "do_center_crop": True}, "only a length of the shorter side"),
        ({"do_rescale": False}, "do_rescale=False is not supported; only true is"),
        ({"size": 20, "crop_size": 21}, "size=20 and crop_size=21 are not supported"),
    ],
)
def test_a_preparation_of_another_kind_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Preparation.of(config)


def test_an_image_encoder_with_the_names_of_published_files_is_read(tmp_path: Path) -> None:
    folder = wan.build(tmp_path / "tiny", "2.1-I2V")
    config = Config(ModelConfig(str(folder), dtype="float32", device="cpu"))
    plain = build(config).pipeline.ctx.network("image_encoder").state_dict()
    [file] = (folder / "image_encoder").glob("*.safetensors")
    older = {f"vision_model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(older | {"vision_model.embeddings.position_ids": torch.arange(wan.SEEN)[None]}, file)
    found = build(config).pipeline.ctx.network("image_encoder").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_pictures_are_looked_at_and_encoded_once_for_all_outputs_and_again_for_others(tmp_path: Path) -> None:
    looked, encoded = [], []
    with Omni(str(wan.build(tmp_path / "tiny", "2.1-I2V")), dtype="float32", device="cpu") as omni:
        components = omni.engine.runner.pipeline.ctx.components
        components["image_encoder"].register_forward_hook(lambda module, given, made: looked.append(made))
        components["vae"].encoder.register_forward_hook(lambda module, given, made: encoded.append(made))
        for image, outputs in ((photo(40, 40), 2), (photo(40, 40), 1), (photo(40, 41), 1)):
            params = DiffusionParams(num_outputs_per_prompt=outputs).over(SMALL)
            [result] = omni.generate({"prompt": "a star", "images": [image]}, params, progress=False)
            assert result.error is None
    assert (len(looked), len(encoded)) == (2, 2 * 2), "two pictures, and two latent frames of each"
