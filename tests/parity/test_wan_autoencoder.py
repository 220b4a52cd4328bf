"""Wan's video autoencoder against diffusers', with every weight redrawn, in float32: both kinds, both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from omnimuse.components.causal_video import CausalConv3d, ChannelNorm, Upsample
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from omnimuse.models.wan.autoencoder import WanAutoencoder
from omnimuse.pipeline.clips import encode_pieces
from omnimuse.pipeline.scaling import scaled
from tests.checkpoints.wan import deep_vae, vae
from tests.distance import distance
from tests.drawn import draw

TOLERANCE = 1e-5
KINDS = pytest.mark.parametrize("build", [vae, deep_vae], ids=["2.1", "2.2"])


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def pair(build: Callable[[], AutoencoderKLWan]) -> tuple[AutoencoderKLWan, WanAutoencoder]:
    with torch.inference_mode(False):
        theirs = build().eval()
        randomise(theirs, 0, "vae", DtypePolicy(torch.float32), "cpu")
        ours = WanAutoencoder.from_config(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())  # strict: nothing missing, nothing unexpected
    return theirs, ours


@KINDS
@pytest.mark.parametrize("frames", [1, 2, 5], ids=lambda frames: f"{frames} latent frames")
def test_decoding_equals_the_reference(build: Callable[[], AutoencoderKLWan], frames: int) -> None:
    theirs, ours = pair(build)
    latents = draw(1, 1, theirs.config.z_dim, frames, 6, 5)
    assert distance(ours.decode(latents).sample, theirs.decode(latents).sample) < TOLERANCE


@KINDS
@pytest.mark.parametrize("frames", [1, 9])
def test_encoding_equals_the_reference(build: Callable[[], AutoencoderKLWan], frames: int) -> None:
    theirs, ours = pair(build)
    video = draw(2, 1, 3, frames, 64, 32)
    assert distance(ours.encode(video).latent_dist.mean, theirs.encode(video).latent_dist.mean) < TOLERANCE


@KINDS
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_latents_of_a_video_in_pieces_are_those_of_the_whole(
    build: Callable[[], AutoencoderKLWan], frames: int
) -> None:
    theirs, ours = pair(build)
    video = draw(2, 3, frames, 64, 32)
    means = encode_pieces(ours, video.unbind(1), frames, 4)
    assert distance(means, theirs.encode(video[None]).latent_dist.mode()[0]) < TOLERANCE
    mean, deviation = (
        torch.tensor(values).view(-1, 1, 1, 1) for values in (theirs.config.latents_mean, theirs.config.latents_std)
    )
    assert distance(scaled(ours, ours.config, means), (means - mean) / deviation) < TOLERANCE


def operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def test_a_single_frame_takes_less_than_half_of_the_operations() -> None:
    theirs, ours = pair(vae)
    latents = draw(1, 1, theirs.config.z_dim, 1, 6, 5)
    assert operations(lambda: ours.decode(latents)) < 0.5 * operations(lambda: theirs.decode(latents))


def test_all_parts_that_can_do_less_are_ours() -> None:
    theirs, ours = pair(deep_vae)
    found = {kind: sum(isinstance(part, kind) for part in ours.modules()) for kind in (CausalConv3d, ChannelNorm)}
    names = [type(part).__name__ for part in theirs.modules()]
    assert found == {CausalConv3d: names.count("WanCausalConv3d"), ChannelNorm: names.count("WanRMS_norm")}
    assert sum(isinstance(part, Upsample) for part in ours.modules()) == names.count("WanUpsample") == 3


def test_a_norm_in_pieces_equals_the_norm_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(vae)
    norms = [[part for part in network.decoder.modules() if "gamma" in part._parameters] for network in (theirs, ours)]
    video = draw(3, 2, 16, 3, 7, 5).transpose(3, 4)  # not contiguous
    for theirs_, ours_ in zip(*norms, strict=True):
        if theirs_.gamma.shape == (16, 1, 1, 1):
            monkeypatch.setattr("omnimuse.components.causal_video.PIECE", 16 * 50)
            assert distance(ours_(video), theirs_(video)) < 1e-6
            assert distance(ours_(torch.zeros(1, 16, 1, 2, 2)) + 1, torch.ones(1, 16, 1, 2, 2)) == 0
