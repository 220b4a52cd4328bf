"""What only HunyuanVideo-1.5 has: a guider with a scale of its own, and tiles of whole clips; and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse import Config, ModelConfig, Omni
from omnimuse.media.video import read_settings, save_video
from omnimuse.pipeline.video import DecodeClip
from tests.checkpoints import hunyuan_video15
from tests.checkpoints.wishes import Wish
from tests.decoding import around, filled, fresh, stepped

pytestmark = pytest.mark.costly("clips in tiles")

WISH = Wish('a red "circle"', None, replace(hunyuan_video15.clip(3, 6.0, 5, 32, 48, 3), guidance_scale=None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hunyuan_video15.build(tmp_path_factory.mktemp("hunyuan") / "tiny", guidance_scale=3.5)


def test_without_a_scale_the_guider_of_the_checkpoint_guides(folder: Path) -> None:
    wish = replace(WISH, params=replace(WISH.params, output_type="latent"))
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        [found] = omni.generate(wish.asked, wish.params, progress=False)
    asked = replace(WISH, params=replace(WISH.params, guidance_scale=3.5))
    [expected] = hunyuan_video15.reference(folder, [asked], "latent")
    assert float((found.output[0] - expected).norm() / expected.norm()) <= 1e-5


def test_a_network_of_few_steps_is_told_where_each_ends(tmp_path: Path) -> None:
    folder = hunyuan_video15.build(tmp_path / "tiny", "i2v-step", guidance_scale=1.0)
    wishes = [wish for family in hunyuan_video15.FAMILIES if family.kind == "i2v" for wish in family.wishes]
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        params = [replace(wish.params, output_type="latent") for wish in wishes]
        found = omni.generate([wish.asked for wish in wishes], params, progress=False)
    for result, expected in zip(found, hunyuan_video15.reference(folder, wishes, "latent"), strict=True):
        assert float((result.output[0] - expected).norm() / expected.norm()) <= 1e-5


def test_a_video_becomes_a_file_that_plays_with_its_settings(folder: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with Omni(str(folder), config=Config(ModelConfig(str(folder), dtype="float32", device="cpu"))) as omni:
        [result] = omni.generate(WISH.asked, replace(WISH.params, fps=8.0), progress=False)
    [video] = result.videos
    save_video(video, tmp_path / "video.mp4", {"prompt": WISH.prompt})
    assert read_settings(tmp_path / "video.mp4") == {"prompt": WISH.prompt}
    with av.open(str(tmp_path / "video.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
    assert [frame.size for frame in frames] == [(48, 32)] * 5
    assert len({frame.tobytes() for frame in frames}) == 5


@pytest.fixture(scope="module")
def vae() -> Any:
    return filled(hunyuan_video15.vae)


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (3, 8), (7, 10)])
def test_tiles_of_clips_are_the_references_tiles(vae: Any, size: tuple[int, int]) -> None:
    latents = torch.randn(hunyuan_video15.CHANNELS, 2, *size, generator=torch.Generator().manual_seed(3))
    vae.enable_tiling(64, 64, 4, 4)
    with torch.inference_mode():
        tiled = vae.decode(latents[None] / vae.config.scaling_factor, return_dict=False)[0][0].transpose(0, 1)
        vae.use_tiling = False
        found = stepped(DecodeClip(tile=64, stride=48), around(vae), fresh(latents))
    assert float((found - (tiled * 0.5 + 0.5).clamp(0, 1)).abs().max()) <= 1e-6
