"""Latents are scaled as diffusers' pipelines scale them, whichever way the autoencoder's configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from torch import Tensor, nn

from omnimuse.core.autoencoder import factor, factors
from omnimuse.core.errors import ModelError
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from omnimuse.pipeline.scaling import patched, scaled, unscaled

CHANNELS = 4


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Linear(1, 1, dtype=dtype)


@pytest.mark.parametrize("shape", [(CHANNELS, 6, 8), (CHANNELS, 3, 6, 8)], ids=["picture", "video"])
@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        {"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None},
        {"latents_mean": [0.1, -0.2, 0.3, 1.0], "latents_std": [0.5, 1.0, 2.0, 3.0]},
    ],
)
def test_unscaling_undoes_scaling_and_scaling_is_the_references_formula(
    config: Mapping[str, Any], shape: tuple[int, ...]
) -> None:
    latents = draw(*shape)
    if config.get("latents_mean"):
        mean, deviation = (
            torch.tensor(config[name]).view(-1, *[1] * (len(shape) - 1)) for name in ("latents_mean", "latents_std")
        )
        expected = (latents - mean) / deviation
    else:
        expected = (latents - (config["shift_factor"] or 0)) * config["scaling_factor"]
    found = scaled(plain(), config, latents)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(unscaled(plain(), config, found), latents, atol=1e-5)


def test_statistics_over_patches_are_applied_as_the_reference_does() -> None:
    vae = AutoencoderKLFlux2(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=CHANNELS, norm_num_groups=8,
    ).eval().requires_grad_(False)  # fmt: skip
    randomise(vae, 0, "vae", DtypePolicy(torch.float32), "cpu")
    latents = draw(1, CHANNELS, 6, 8)
    mean, deviation = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    expected = (Flux2KleinPipeline._patchify_latents(latents) - mean) / deviation.view(1, -1, 1, 1)
    found = scaled(vae, vae.config, latents[0])
    assert found.shape == (4 * CHANNELS, 3, 4)
    assert not torch.equal(found, patched(latents[0])), "the statistics were drawn"
    assert torch.allclose(found, expected[0], atol=1e-6)
    assert torch.allclose(unscaled(vae, vae.config, found), latents[0], atol=1e-5)


def test_latents_are_unscaled_in_the_dtype_that_decodes_them() -> None:
    assert unscaled(plain(torch.bfloat16), {"scaling_factor": 0.5}, draw(CHANNELS, 2, 2)).dtype == torch.bfloat16


def test_a_configuration_that_says_nothing_of_scaling_is_refused() -> None:
    for config in ({}, {"scaling_factor": None}, {"scaling_factor": "0.3"}):
        with pytest.raises(ModelError, match=r"scaling_factor=.* and no latents_mean"):
            scaled(plain(), config, draw(CHANNELS, 2, 2))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"block_out_channels": [128, 256, 512, 512]}, (1, 8)),
        ({"block_out_channels": [8]}, (1, 1)),
        ({"temperal_downsample": [False, True, True]}, (4, 8)),
        ({"temperal_downsample": [True, True]}, (4, 4)),
        ({"scale_factor_spatial": 16, "scale_factor_temporal": 4, "temperal_downsample": [False, True, True]}, (4, 16)),
        ({}, (4, 8)),
    ],
)
def test_the_size_of_a_latent_follows_from_the_configuration(
    config: Mapping[str, Any], expected: tuple[int, int]
) -> None:
    assert factors(config) == expected
    assert factor(config) == expected[1]
