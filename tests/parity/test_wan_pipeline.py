"""What only Wan has: a boundary between two experts, a time per token, tiles; and what an option is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Result
from omnimuse.loader.components import quiet
from tests.checkpoints import wan
from tests.checkpoints.wan import from_pictures
from tests.checkpoints.wishes import Wish, film, of_picture, photo
from tests.distance import distance
from tests.once import Once

CLIP = replace(of_picture(4, 4.0, 32, 48, 3), num_frames=5, max_sequence_length=16)
WISH = Wish("a red circle above the blue square", "grey", CLIP)
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(once: Once) -> Build:
    """Tiny checkpoints by their kind and boundary (read only)."""

    def make(kind: str, boundary_ratio: float = 0.875) -> Path:
        name = f"Wan, {kind}, {boundary_ratio}"
        return once.folder(name, lambda folder: wan.build(folder, kind, boundary_ratio=boundary_ratio))

    return make


def ours(folder: Path, wish: Wish, dtype: str = "float32") -> Result:
    config = Config(ModelConfig(str(folder), dtype=dtype, device="cpu"))
    with Omni(str(folder), config=config) as omni:
        [result] = omni.generate(wish.asked, wish.params, progress=False)
    if result.error is not None:
        raise result.error
    return result


def wish_for(kind: str, **params: object) -> Wish:
    """One that a checkpoint of this kind can grant."""
    wish = replace(WISH, params=replace(CLIP, **params))  # type: ignore[arg-type]
    if "-" not in kind:
        return wish
    tokens = wan.CONTEXT if kind.startswith("2.1-") else CLIP.max_sequence_length
    last = photo(50, 70) if kind == "2.1-FLF2V" else None
    return replace(wish, image=photo(70, 50), last=last, params=replace(wish.params, max_sequence_length=tokens))


def latents(folder: Path, **params: object) -> Tensor:
    wish = replace(WISH, params=replace(CLIP, output_type="latent", **params))  # type: ignore[arg-type]
    return ours(folder, wish).output[0]


def theirs(folder: Path, **params: object) -> Tensor:
    with quiet("diffusers"), quiet("transformers"):
        return wan.reference(folder, [replace(WISH, params=replace(CLIP, **params))], "latent")[0]  # type: ignore[arg-type]


CHANGED = [
    (1.0, 4.0, 5, (32, 48), film(60, 40, 6)),
    (0.55, 1.0, 9, (32, 32), film(33, 50, 9)),
    (0.8, 6.0, 1, (48, 32), film(48, 48, 3)),
]
"""Strength, guidance, frames, height and width, and the video to start from."""


def of_video(strength: float, guidance: float, frames: int, size: tuple[int, int], video: tuple[Image, ...]) -> Wish:
    params = replace(of_picture(5, guidance, *size, 11), num_frames=frames, max_sequence_length=16, strength=strength)
    negative = "grey" if guidance > 1 else None
    return Wish("a red circle", negative, replace(params, output_type="latent"), video=video)


def test_videos_of_any_length_and_size_are_changed_together_as_the_reference_changes_each(build: Build) -> None:
    folder, wishes = build("2.1"), [of_video(*each) for each in CHANGED]
    with quiet("diffusers"), quiet("transformers"):
        expected = wan.reference(folder, wishes, "latent")
    config = Config(ModelConfig(str(folder), dtype="float32", device="cpu"))
    with Omni(str(folder), config=config) as omni:
        results = omni.generate([wish.asked for wish in wishes], [wish.params for wish in wishes], progress=False)
    for result, wanted in zip(results, expected, strict=True):
        assert result.error is None, result.error
        assert distance(result.output[0], wanted) < 1e-5


def test_a_checkpoint_with_a_time_per_token_starts_from_no_video_for_the_reference_cannot(build: Build) -> None:
    folder, wish = build("5B"), of_video(0.8, 1.0, 5, (64, 64), film(64, 64, 5))
    with quiet("diffusers"), quiet("transformers"), pytest.raises(RuntimeError, match="size of tensor"):
        wan.reference(folder, [wish], "latent")  # it draws noise for an autoencoder of factor 8
    with pytest.raises(RequestError, match="video"):
        ours(folder, wish)


@pytest.mark.shows("video in", families=["WanPipeline-A14B"])
def test_of_two_experts_the_second_changes_a_video_where_the_steps_are_its_own(build: Build) -> None:
    """The reference for videos knows one network: at these steps, which are below the boundary, that is the second."""
    folder, wish = build("A14B", 0.95), of_video(0.4, 4.0, 5, (32, 48), film(60, 40, 6))
    with quiet("diffusers"), quiet("transformers"):
        wanted = wan.call_changing(wan.pipeline(folder), wish, "latent", "transformer_2")
    assert distance(ours(folder, wish).output[0], wanted) < 1e-5


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("boundary_ratio", [0.7, 0.875, 0.95, 0.98, 1.1])
def test_the_boundary_divides_the_steps_as_in_the_reference(build: Build, boundary_ratio: float) -> None:
    """Timesteps are 999, 973, 923, 800: all steps are the first expert's, then three, two, one, none."""
    folder = build("A14B", boundary_ratio)
    assert distance(latents(folder, guidance_scale_2=2.0), theirs(folder, guidance_scale_2=2.0)) < 1e-5


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("boundary_ratio", [0.0, 0.7, 0.95, 1.0])
def test_a_boundary_for_one_request_is_a_checkpoint_with_that_boundary(build: Build, boundary_ratio: float) -> None:
    found = latents(build("A14B"), guidance_scale_2=2.0, boundary_ratio=boundary_ratio)
    assert torch.equal(found, latents(build("A14B", boundary_ratio or 1e-9), guidance_scale_2=2.0))
    with pytest.raises(RequestError, match="one network for all noise levels"):
        ours(build("2.1"), replace(WISH, params=replace(CLIP, boundary_ratio=boundary_ratio)))


def test_a_wrong_boundary_or_second_scale_would_be_noticed(build: Build) -> None:
    plain = latents(build("A14B"), guidance_scale_2=2.0)
    assert distance(latents(build("A14B", 0.95), guidance_scale_2=2.0), plain) > 1e-2
    assert distance(latents(build("A14B"), guidance_scale_2=2.2), plain) > 1e-3
    assert torch.equal(latents(build("A14B"), guidance_scale_2=4.0), latents(build("A14B")))


def test_an_expert_whose_scale_is_one_is_not_guided(build: Build) -> None:
    folder = build("A14B")
    found = latents(folder, guidance_scale_2=1.0)
    assert distance(found, theirs(folder, guidance_scale_2=1.0)) < 1e-5
    assert torch.equal(found, latents(folder, guidance_scale_2=0.5))


def test_a_small_change_of_the_prompt_or_its_padding_would_be_noticed(build: Build) -> None:
    folder = build("2.1")
    plain = latents(folder)
    assert distance(latents(folder, max_sequence_length=15), plain) > 1e-3
    assert distance(theirs(folder, max_sequence_length=15), latents(folder, max_sequence_length=15)) < 1e-5


@pytest.mark.crossed
@pytest.mark.parametrize("kind", wan.FLOW_SHIFT)
def test_half_precision_stays_near_the_reference(build: Build, kind: str) -> None:
    folder = build(kind)
    wish = wish_for(kind, height=64, width=64, output_type="pt")
    with quiet("diffusers"), quiet("transformers"):
        pipe = wan.pipeline(folder, torch.bfloat16, pictures=wish.image is not None)
    expected = wan.call(pipe, wish, "pt")
    found = ours(folder, wish, "bfloat16").output[0]
    assert found.dtype == torch.float32
    assert float((found - expected.float()).abs().mean()) < 2e-2


@pytest.mark.crossed
@pytest.mark.parametrize("kind", wan.FLOW_SHIFT)
def test_a_video_is_decoded_in_float32_whatever_the_networks_are_in(build: Build, kind: str) -> None:
    """As in the reference's own example: of the latents of networks in bfloat16 it makes the same frames."""
    folder = build(kind)
    plain, frames = (
        ours(folder, wish_for(kind, height=64, width=64, output_type=output_type), "bfloat16")
        for output_type in ("latent", "pt")
    )
    with quiet("diffusers"), quiet("transformers"):
        pipe = wan.pipeline(folder, torch.bfloat16, pictures="-" in kind)
    vae, latents = pipe.vae, plain.output  # [1, C, f, h, w]
    assert vae.dtype == torch.float32
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.inference_mode():
        decoded = vae.decode(latents * deviation + mean, return_dict=False)[0]
    expected = pipe.video_processor.postprocess_video(decoded, output_type="pt")  # [1, F, 3, H, W]
    assert float((frames.output - expected).abs().max()) < 1e-5


def test_a_video_comes_as_pictures_with_a_rate(build: Build) -> None:
    result = ours(build("2.1"), replace(WISH, params=replace(CLIP, num_outputs_per_prompt=2, fps=12.0)))
    assert result.output is None
    assert not result.images
    assert [len(video.frames) for video in result.videos] == [5, 5]
    assert {frame.size for video in result.videos for frame in video.frames} == {(48, 32)}
    assert [video.fps for video in result.videos] == [12.0, 12.0]
    assert ours(build("2.1"), WISH).videos[0].fps == 16.0


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("kind", ["5B", "2.1-I2V", "2.1-FLF2V", "A14B-I2V"])
def test_another_picture_first_or_last_would_be_noticed(build: Build, kind: str) -> None:
    wish = replace(wish_for(kind, height=64, width=64, output_type="latent"), image=photo(70, 50))
    folder = build(kind)
    plain = ours(folder, wish).output[0]
    assert distance(ours(folder, replace(wish, image=photo(70, 51))).output[0], plain) > 1e-2
    if kind in ("A14B-I2V", "2.1-FLF2V"):
        assert distance(ours(folder, replace(wish, last=photo(50, 71))).output[0], plain) > 1e-2


@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_first_and_last_frames_that_an_encoder_sees_give_the_references_videos(build: Build, output_type: str) -> None:
    family, folder = from_pictures("2.1-FLF2V", wan.CONTEXT, both=True), build("2.1-FLF2V")
    asks = [wish.asked for wish in family.wishes]
    params = [replace(wish.params, output_type=output_type) for wish in family.wishes]  # type: ignore[arg-type]
    with quiet("diffusers"), quiet("transformers"):
        expected = wan.reference(folder, family.wishes, output_type)
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        found = [result.output[0] for result in omni.generate(asks, params, progress=False)]
    for ours_, theirs_ in zip(found, expected, strict=True):
        assert distance(ours_, theirs_) < 1e-5


def test_a_checkpoint_with_a_time_per_token_gives_the_picture_back_as_its_first_frame(build: Build) -> None:
    folder = build("5B")
    wish = replace(wish_for("5B", height=64, width=64, output_type="latent"), image=photo(70, 50))
    found, other = (ours(folder, replace(wish, prompt=prompt)).output[0] for prompt in ("a star", "a circle"))
    assert torch.equal(found[:, 0], other[:, 0])
    assert distance(found[:, 1:], other[:, 1:]) > 1e-3
