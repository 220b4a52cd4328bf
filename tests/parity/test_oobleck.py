"""The autoencoder of sound against diffusers: both ways, and piece by piece as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from omnimuse.components.oobleck import Oobleck, deviations
from omnimuse.core.errors import ModelError
from omnimuse.loader.components import quiet
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights
from tests.checkpoints import parts, stable_audio
from tests.distance import distance

RATIOS = ((2, 4), (2, 4, 4, 8, 8), (2, 3))


def both(folder: Path, ratios: Sequence[int]) -> tuple[AutoencoderOobleck, Oobleck]:
    parts.save_module(folder, "vae", 3, lambda: stable_audio.vae(ratios))
    with quiet("diffusers"):
        theirs = AutoencoderOobleck.from_pretrained(folder / "vae").eval()
    ours = construct(lambda: Oobleck.from_config(dict(theirs.config)))
    load_weights(ours, folder / "vae", (), DtypePolicy(torch.float32), "cpu")
    return theirs, ours.eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("ratios", RATIOS)
@torch.inference_mode()
def test_both_ways_are_the_references(tmp_path: Path, ratios: Sequence[int]) -> None:
    theirs, ours = both(tmp_path, ratios)
    latents, sound = noise(1, 8, 9), noise(1, 2, 9 * ours.config.hop) * 0.3
    assert distance(ours.decode(latents), theirs.decode(latents).sample) < 1e-6
    posterior = theirs.encode(sound).latent_dist
    means, scales = ours.encode(sound).chunk(2, dim=1)
    assert distance(means, posterior.mean) < 1e-6
    assert distance(deviations(scales), posterior.std) < 1e-6


@pytest.mark.parametrize("ratios", RATIOS[:2])
@torch.inference_mode()
def test_what_lies_farther_away_than_the_margin_changes_nothing(tmp_path: Path, ratios: Sequence[int]) -> None:
    """And a little less far away it does: no more than needed is decoded."""
    _, ours = both(tmp_path, ratios)
    margin, hop = ours.margin, ours.config.hop
    assert margin is not None
    latents = noise(1, 8, 3 * margin)
    middle = slice((margin + 2) * hop, (margin + 3) * hop)
    plain = ours.decode(latents)[..., middle]
    for away, same in ((margin + 1, True), (margin // 2, False)):
        changed = latents.clone()
        changed[..., margin + 2 + away :] += 1
        changed[..., : margin + 2 - away + 1] -= 1
        difference = (ours.decode(changed)[..., middle] - plain).abs().max() / plain.abs().max()
        assert bool(difference < 1e-6) is same


def test_with_an_odd_ratio_there_are_no_pieces(tmp_path: Path) -> None:
    assert both(tmp_path, (2, 3))[1].margin is None


def test_a_configuration_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ModelError, match="2 downsampling_ratios and 1 channel_multiples"):
        Oobleck.from_config({"downsampling_ratios": [2, 4], "channel_multiples": [1]})
