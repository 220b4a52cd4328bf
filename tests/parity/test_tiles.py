"""Pictures of every family are decoded in tiles as diffusers has them, of any size and overlap, and one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from omnimuse.core.config import DecodeConfig
from omnimuse.engine.local import finished, start
from omnimuse.models import REGISTRY
from omnimuse.pipeline.decode import DecodeImage
from omnimuse.worker.find import pipeline_for
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.checkpoints.wishes import Family
from tests.invariants.conftest import Subject

pytestmark = pytest.mark.crossed

PICTURES = [
    family
    for family in (*FAMILIES, *ALLROUNDERS)
    if any(isinstance(stage, DecodeImage) for stage in pipeline_for(REGISTRY.spec(family.arch)).stages)
]
SIDE = 64
"""Pixels of a tile."""


def reference(folder: Path, overlap: float) -> Any:
    """The autoencoder of a checkpoint as diffusers has it, decoding in tiles; None where it has none."""
    kind = json.loads((folder / "model_index.json").read_text()).get("vae", ["", ""])[1]
    if not hasattr(diffusers, kind):
        return None
    vae: Any = getattr(diffusers, kind).from_pretrained(folder / "vae").eval()
    vae.enable_tiling()
    if hasattr(vae, "tile_overlap_factor"):
        vae.tile_latent_min_size = SIDE * vae.tile_latent_min_size // vae.tile_sample_min_size
        vae.tile_sample_min_size, vae.tile_overlap_factor = SIDE, overlap
    else:
        vae.enable_tiling(SIDE, SIDE, int(SIDE * (1 - overlap)), int(SIDE * (1 - overlap)))
    return vae


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("family", PICTURES, ids=lambda family: family.name)
def test_tiles_of_any_size_and_overlap_are_the_reference_s(
    family: Family, overlap: float, tiny: Callable[[str], Path]
) -> None:
    folder = tiny(family.name)
    theirs = reference(folder, overlap) if (folder / "model_index.json").exists() else None
    if theirs is None:
        assert family in ALLROUNDERS, "diffusers has the autoencoder of everything else"
        return
    engine = start(Subject(family, folder).config(decode=DecodeConfig(tile=SIDE, overlap=overlap)))
    ctx = engine.runner.pipeline.ctx
    assert ctx.tiling is not None
    height, width = (side * ctx.tiling.cells // 4 for side in (5, 11))
    channels = theirs.config.get("latent_channels") or theirs.config.z_dim
    latents = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def decode(tile: Tensor) -> Tensor:
        seen.append(tile)
        return ctx.components["vae"].decode(tile)

    with torch.inference_mode():
        found = ctx.tiling.decode(decode, latents)
        frames = theirs.config.get("latent_channels") is None
        expected = theirs.decode(latents[:, :, None] if frames else latents).sample
    engine.close()
    expected = expected[:, :, 0] if frames else expected
    assert len(seen) > 1 and max(max(tile.shape[-2:]) for tile in seen) == ctx.tiling.cells
    assert float((found.clamp(-1, 1) - expected.clamp(-1, 1)).abs().max()) <= 1e-5


@pytest.mark.parametrize("family", PICTURES, ids=lambda family: family.name)
def test_pictures_are_decoded_one_at_a_time(family: Family, tiny: Callable[[str], Path]) -> None:
    subject = Subject(family, tiny(family.name))
    engine = start(subject.config())
    vae, counts = engine.runner.pipeline.ctx.components["vae"], list[int]()
    decode = vae.decode

    def counted(latents: Tensor) -> Tensor:
        counts.append(len(latents))
        return decode(latents)

    vae.decode = counted
    request = engine.make_request(subject.ask(0, output_type="pt", num_outputs_per_prompt=2))
    other = engine.make_request(subject.ask(0, output_type="pt"))
    finished(engine, request, other)
    engine.close()
    assert len(counts) >= 3 and set(counts) == {1}
