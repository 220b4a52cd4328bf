"""Autoencoders of videos that are given pictures: one frame, equal to diffusers' own encoding and decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_qwenimage, autoencoder_kl_wan

from omnimuse.components.causal_video import decode_picture, encode_picture, lighten
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from omnimuse.pipeline.tiles import Tiling

PARTS = {
    AutoencoderKLWan: (
        autoencoder_kl_wan.WanCausalConv3d,
        autoencoder_kl_wan.WanRMS_norm,
        autoencoder_kl_wan.WanUpsample,
    ),
    AutoencoderKLQwenImage: (
        autoencoder_kl_qwenimage.QwenImageCausalConv3d,
        autoencoder_kl_qwenimage.QwenImageRMS_norm,
        autoencoder_kl_qwenimage.QwenImageUpsample,
    ),
}


@pytest.fixture(params=PARTS, ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The reference, and the same with lighter parts."""
    made = [request.param(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1) for _ in range(2)]
    for vae in made:
        randomise(vae, 0, "vae", DtypePolicy(torch.float32), "cpu")
        vae.eval().requires_grad_(False)
    lighten(made[1], *PARTS[request.param])
    return made[0], made[1]


def test_a_picture_is_encoded_as_a_video_of_one_frame(pair: tuple[Any, Any]) -> None:
    reference, ours = pair
    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = reference.encode(pixels[:, :, None]).latent_dist.parameters[:, :, 0]
    assert torch.allclose(encode_picture(ours, pixels), expected, atol=1e-5)


def test_latents_of_one_frame_are_decoded_to_its_picture(pair: tuple[Any, Any]) -> None:
    reference, ours = pair
    latents = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(2))
    expected = reference.decode(latents[:, :, None]).sample[:, :, 0]
    assert torch.allclose(decode_picture(ours, latents).clamp(-1, 1), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (3, 8), (7, 10)])
def test_a_picture_in_tiles_is_the_references_picture_in_tiles(pair: tuple[Any, Any], size: tuple[int, int]) -> None:
    reference, ours = pair
    reference.enable_tiling(32, 32, 24, 24)
    latents = torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(2))
    expected = reference.decode(latents[:, :, None]).sample[:, :, 0].clamp(-1, 1)
    found = Tiling(4, 32).decode(lambda tile: decode_picture(ours, tile), latents).clamp(-1, 1)
    assert torch.allclose(found, expected, atol=1e-5)
