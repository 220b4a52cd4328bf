"""What only LTX-2 has: a video and its sound from one network, and a file that carries both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2Pipeline

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Result
from omnimuse.media.finished import read_settings, save
from omnimuse.models.ltx2.pipeline import LEAST
from omnimuse.pipeline.tiles import Tiling
from omnimuse.pipeline.video import DecodeClip
from tests.checkpoints import ltx2
from tests.checkpoints.wishes import OF_SOUND, TOLERANCE, Wish
from tests.decoding import around, filled, fresh, random_latents, stepped

pytestmark = pytest.mark.costly("videos with sound")


@pytest.fixture(scope="module", params=["LTX2Pipeline", "LTX2Pipeline-interleaved"])
def folder(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Path:
    return tiny(request.param)


def ours(folder: Path, wishes: list[Wish], output_type: str = "pil") -> list[Result]:
    """All wishes in flight together."""
    params = [replace(wish.params, output_type=output_type) for wish in wishes]  # type: ignore[arg-type]
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        results = omni.generate([wish.asked for wish in wishes], params, progress=False)
    for result in results:
        if result.error is not None:
            raise result.error
    return results


@pytest.mark.parametrize(("output_type", "tolerance"), [("latent", TOLERANCE), ("pt", OF_SOUND)])
def test_the_sound_of_every_video_in_flight_is_the_references(folder: Path, output_type: str, tolerance: float) -> None:
    wishes = [*ltx2.WISHES, ltx2.BEGUN]
    found = ours(folder, wishes, output_type)
    for (_, expected), result in zip(ltx2.both(folder, wishes, output_type), found, strict=True):
        sound = result.tensors["audio"][0]
        assert sound.shape == expected.shape
        assert float((sound - expected).norm() / expected.norm()) <= tolerance


CHOICES: list[dict[str, float]] = [
    {"audio_guidance_scale": 2.0},
    {"modality_scale": 1.5},
    {"audio_modality_scale": 1.0},
    {"guidance_rescale": 0.1},
    {"audio_guidance_rescale": 1.0},
]


def test_every_choice_of_guidance_is_the_references(folder: Path) -> None:
    wish = ltx2.WISHES[0]
    wishes = [replace(wish, params=replace(wish.params, extra=choice)) for choice in CHOICES]
    plain, *found = ours(folder, [wish, *wishes], "latent")
    for choice, result, made in zip(CHOICES, found, ltx2.both(folder, wishes, "latent"), strict=True):
        for medium, expected in zip(("video", "audio"), made, strict=True):
            assert float((result.tensors[medium][0] - expected).norm() / expected.norm()) <= 1e-5, choice
        moved = {name: float((result.tensors[name] - plain.tensors[name]).norm()) for name in result.tensors}
        assert max(moved.values()) > 1e-3, f"{choice}: what changes nothing would be ignored"


@pytest.mark.parametrize("crf", [0, 20])
def test_how_a_first_frame_is_packed_is_the_references_and_it_stays_as_it_was_given(folder: Path, crf: int) -> None:
    wish = replace(ltx2.BEGUN, params=replace(ltx2.BEGUN.params, extra={"image_crf": crf}))
    other = replace(wish, prompt="two squares", params=replace(wish.params, seed=12))
    plain, found, again = ours(folder, [ltx2.BEGUN, wish, other], "latent")
    latents, [(expected, _)] = found.tensors["video"][0], ltx2.both(folder, [wish], "latent")
    assert float((latents - expected).norm() / expected.norm()) <= 1e-5
    assert float((latents - plain.tensors["video"][0]).norm()) > 1e-3
    assert torch.equal(again.tensors["video"][0][:, 0], latents[:, 0])


def test_the_file_of_a_video_carries_its_sound(folder: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    wish = replace(ltx2.WISHES[1], params=replace(ltx2.WISHES[1].params, num_frames=25, fps=24.0))
    [result] = ours(folder, [wish])
    [parts] = result.parts
    assert [part.medium for part in parts] == ["video", "audio"]
    path = tmp_path / "video.mp4"
    save(parts, path, {"prompt": wish.prompt})
    assert read_settings(path) == {"prompt": wish.prompt}
    with av.open(str(path)) as container:
        assert (len(container.streams.video), len(container.streams.audio)) == (1, 1)
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
        rate = container.streams.audio[0].rate
    heard = np.concatenate(pieces, axis=-1)
    sound = parts[1].data
    assert len(frames) == 25
    assert heard.shape[0] == 2
    assert abs(heard.shape[1] / rate - sound.samples.shape[1] / sound.rate) < 0.3, "AAC fills up its last frame"
    assert float(np.abs(heard).max()) > 0.01, "it is not silence"


def test_a_text_that_does_not_fill_whole_registers_is_refused(folder: Path) -> None:
    wish = replace(ltx2.WISHES[0], params=replace(ltx2.WISHES[0].params, max_sequence_length=30))
    with pytest.raises(RequestError, match="max_sequence_length=30 is not a multiple of 8; use 24"):
        ours(folder, [wish])


@pytest.fixture(scope="module")
def vae() -> Any:
    """An autoencoder with a mean and a deviation of its own for every channel."""
    vae = filled(ltx2.vae)
    vae.latents_mean.copy_(random_latents(ltx2.CHANNELS, seed=1))
    vae.latents_std.copy_(0.5 + random_latents(ltx2.CHANNELS, seed=2).abs())
    return vae


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (3, 8), (8, 2), (5, 11)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_tiles_of_its_videos_are_the_references_tiles(vae: Any, size: tuple[int, int], ranks: int) -> None:
    latents = random_latents(ltx2.CHANNELS, 2, *size)
    whole = LTX2Pipeline._denormalize_latents(
        latents[None], vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    with torch.inference_mode():
        vae.enable_tiling(128, 128, None, 96, 96)
        tiled = vae.decode(whole, return_dict=False)[0][0].transpose(0, 1)
        vae.use_tiling = False
        loop = DecodeClip(tile=128, stride=96, least=LEAST)
        found = stepped(loop, around(vae, Tiling(4, 128, ranks=ranks)), fresh(latents))
    assert float((found - (tiled * 0.5 + 0.5).clamp(0, 1)).abs().max()) <= 1e-5
