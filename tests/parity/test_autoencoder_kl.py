"""Our autoencoder of pictures against diffusers', with every weight redrawn, in float32 and on odd sizes.

Ours takes the reference's weights under their own names; a checkpoint's old names go through the rules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as Reference
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.components.autoencoder_kl import RULES, AutoencoderKL
from omnimuse.core.errors import ModelError
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights, randomise
from omnimuse.pipeline.tiles import Tiling
from tests.distance import distance
from tests.drawn import draw

FLOAT32 = DtypePolicy(torch.float32)
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def reference(*widths: int, quant: bool = True, attends: bool = True, layers: int = 1) -> Reference:
    with torch.inference_mode(False):
        model = Reference(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=layers,
            norm_num_groups=4,
            use_quant_conv=quant,
            use_post_quant_conv=quant,
            mid_block_add_attention=attends,
        )
        randomise(model, 0, "vae", FLOAT32, "cpu")
    return model


def ours(like: Reference) -> AutoencoderKL:
    model = AutoencoderKL.from_config(like.config).eval()
    model.load_state_dict(like.state_dict())  # strict: nothing missing, nothing unexpected
    return model


SHAPES = ((8,), (8, 12), (8, 12, 8), (8, 16, 24, 20))


@pytest.mark.parametrize("widths", SHAPES, ids=lambda widths: f"{len(widths)} levels")
@pytest.mark.parametrize("quant", [True, False], ids=["quant convolutions", "none"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["rows first", "channels last"])
def test_pictures_and_latents_are_the_references(
    widths: tuple[int, ...], quant: bool, order: torch.memory_format
) -> None:
    expected = reference(*widths, quant=quant)
    found = ours(expected).to(memory_format=order)  # type: ignore[call-overload]
    pixels, latents = draw(1, 2, 3, 41, 58), draw(2, 2, 4, 5, 9)
    assert distance(found.encode(pixels), expected.encode(pixels).latent_dist.parameters) <= TOLERANCE
    assert distance(found.decode(latents), expected.decode(latents).sample) <= TOLERANCE


@pytest.mark.parametrize("attends", [True, False])
def test_deeper_levels_and_a_middle_without_attention_are_the_references(attends: bool) -> None:
    expected = reference(8, 12, attends=attends, layers=3)
    found = ours(expected)
    pixels, latents = draw(3, 1, 3, 6, 14), draw(4, 1, 4, 1, 7)
    assert distance(found.encode(pixels), expected.encode(pixels).latent_dist.parameters) <= TOLERANCE
    assert distance(found.decode(latents), expected.decode(latents).sample) <= TOLERANCE


def test_every_weight_matters() -> None:
    network = ours(reference(8, 12, layers=2))
    pixels, latents = draw(1, 1, 3, 12, 16), draw(2, 1, 4, 5, 6)
    before = torch.cat([network.encode(pixels).flatten(), network.decode(latents).flatten()])
    for name, weight in network.named_parameters():
        kept = weight.clone()
        weight.add_(draw(5, *weight.shape))
        after = torch.cat([network.encode(pixels).flatten(), network.decode(latents).flatten()])
        # A key's bias adds the same to every score, which softmax takes away again.
        assert name.endswith("to_k.bias") or float((after - before).abs().max()) > 1e-4, name
        weight.copy_(kept)


def test_weights_that_are_loaded_again_or_moved_to_another_dtype_are_the_ones_that_draw() -> None:
    first, second = reference(8, 12), reference(8, 12)
    with torch.inference_mode(False):
        randomise(second, 1, "vae", FLOAT32, "cpu")
    network, latents = ours(first), draw(2, 1, 4, 5, 9)
    network.decode(latents)
    network.load_state_dict(second.state_dict())
    assert distance(network.decode(latents), second.decode(latents).sample) <= TOLERANCE
    exact = network.double().decode(latents.double())
    assert exact.dtype == torch.float64
    assert distance(exact.float(), second.decode(latents).sample) <= TOLERANCE


def test_bfloat16_is_as_close_to_float32_as_the_reference_is() -> None:
    expected, latents = reference(32, 64, layers=2), draw(2, 1, 4, 16, 16)
    truth = expected.decode(latents).sample
    found = ours(expected).bfloat16().decode(latents.bfloat16()).float()
    theirs = expected.bfloat16().decode(latents.bfloat16()).sample.float()
    assert distance(found, truth) <= 1.25 * distance(theirs, truth)


@pytest.mark.parametrize("old", [False, True], ids=["names of today", "names before diffusers 0.12"])
def test_a_checkpoint_fills_an_empty_network_under_its_old_and_new_names(tmp_path: Path, old: bool) -> None:
    expected = reference(8, 12)
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        expected.save_pretrained(tmp_path)
        if old:
            file = tmp_path / "diffusion_pytorch_model.safetensors"
            content = {older(name): tensor for name, tensor in load_file(file).items()}
            assert sum("proj_attn" in name for name in content) == 4
            save_file(content, file, {"format": "pt"})
        network = construct(lambda: AutoencoderKL.from_config(expected.config))
        load_weights(network, tmp_path, RULES, FLOAT32, "cpu")
    latents = draw(2, 1, 4, 5, 9)
    assert distance(network.decode(latents), expected.decode(latents).sample) <= TOLERANCE


def older(name: str) -> str:
    for new, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
    return name


# -- configurations ----------------------------------------------------------------------------------------------------


def test_everything_that_the_reference_writes_into_a_configuration_is_understood() -> None:
    config = dict(Reference(block_out_channels=(32,)).config)
    assert {"force_upcast", "sample_size", "scaling_factor", "latents_mean", "mid_block_add_attention"} <= set(config)
    AutoencoderKL.from_config({"_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1", **config})


def test_an_empty_configuration_means_what_it_means_to_the_reference() -> None:
    names = {name: tuple(tensor.shape) for name, tensor in AutoencoderKL.from_config({}).state_dict().items()}
    assert names == {name: tuple(tensor.shape) for name, tensor in Reference().state_dict().items()}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "mish"),
        ("in_channels", 4),
        ("out_channels", 4),
        ("down_block_types", ["AttnDownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D", "UpDecoderBlock2D"]),
        ("norm_type", "spatial"),
        ("block_out_channels", [33]),
        ("norm_num_groups", 0),
    ],
)
def test_a_variant_that_is_not_computed_is_refused_by_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(ModelError) as caught:
        AutoencoderKL.from_config({key: value})
    assert key in str(caught.value)
    assert str(value).strip("[]") in str(caught.value)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.0])
@pytest.mark.parametrize("size", [(8, 8), (5, 11), (19, 7), (4, 9), (3, 4)])
def test_a_picture_in_tiles_is_the_reference_s_picture_in_tiles(size: tuple[int, int], overlap: float) -> None:
    theirs = reference(8, 8, 8)
    theirs.enable_tiling()
    assert (theirs.tile_latent_min_size, theirs.tile_sample_min_size) == (8, 32)
    theirs.tile_latent_min_size, theirs.tile_sample_min_size, theirs.tile_overlap_factor = 4, 16, overlap
    vae = ours(theirs)
    assert vae.scale == 4
    latents, seen = draw(1, 1, 4, *size), []

    def decode(tile: Tensor) -> Tensor:
        seen.append(tuple(tile.shape[-2:]))
        return vae.decode(tile)

    found = Tiling(4, 16, overlap=overlap).decode(decode, latents)
    assert distance(found, theirs.decode(latents).sample) < TOLERANCE
    assert max(max(sides) for sides in seen) == 4 and (len(seen) > 1) == (max(size) > 4)
