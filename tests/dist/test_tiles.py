"""Tiles that ranks share: videos and pictures are what one rank makes in tiles, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from omnimuse.components.causal_video import decode_picture
from omnimuse.core.config import ParallelConfig
from omnimuse.models.ltx2.pipeline import LEAST
from omnimuse.parallel.mesh import ALL, Mesh
from omnimuse.parallel.tiles import TileRunner
from omnimuse.pipeline.tiles import Tiling
from omnimuse.pipeline.video import DecodeClip, DecodeVideo
from tests.checkpoints import hunyuan_video15, ltx2, qwen_image, wan
from tests.decoding import around, filled, fresh, random_latents, stepped
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(240)]

SIZES = ((3, 4), (5, 7))
"""Cells of latents: one tile of four a side, and six of them, those on the edges narrower."""


@dataclass(frozen=True)
class Kind:
    """An autoencoder of videos with so many pixels a cell, and the loop that drives it, in tiles of four cells."""

    make: Callable[[], Any]
    ratio: int
    channels: int
    clip: bool = False

    @property
    def loop(self) -> DecodeVideo:
        tile, stride = 4 * self.ratio, 3 * self.ratio
        return DecodeClip(tile=tile, stride=stride, least=LEAST) if self.clip else DecodeVideo()

    def built(self) -> Any:
        vae = filled(self.make)
        if not self.clip:
            vae.enable_tiling(4 * self.ratio, 4 * self.ratio, 3 * self.ratio, 3 * self.ratio)
        return vae


KINDS = {
    "wan": Kind(wan.vae, 8, 16),
    "wan in patches": Kind(wan.deep_vae, 16, wan.DEEP_CHANNELS),
    "hunyuan": Kind(hunyuan_video15.vae, 16, hunyuan_video15.CHANNELS, clip=True),
    "ltx2": Kind(ltx2.vae, 32, ltx2.CHANNELS, clip=True),
}


def shared_out(rank: int, ranks: int, meeting: Path) -> None:
    """On every rank: alone, and together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    mesh = Mesh.from_process_group(ParallelConfig(tensor=ranks))
    alone, together = Tiling(4, 32), Tiling(4, 32, TileRunner(mesh.axis(ALL)), ranks)
    with torch.inference_mode():
        for name, kind in KINDS.items():
            vae = kind.built()
            for size in SIZES:
                latents = random_latents(kind.channels, 2, *size)
                expected = stepped(kind.loop, around(vae, alone), fresh(latents))
                found = stepped(kind.loop, around(vae, together), fresh(latents))
                assert torch.equal(found, expected), (name, size)
        vae = filled(qwen_image.vae)
        for size in SIZES:
            latents = random_latents(1, 16, *size)
            parts = [way.decode(lambda tile: decode_picture(vae, tile), latents) for way in (alone, together)]
            assert torch.equal(*parts), size
    mesh.close()
    dist.destroy_process_group()


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("ranks", [2, 3])
def test_tiles_that_ranks_share_are_the_tiles_of_one(ranks: int, tmp_path: Path) -> None:
    play(shared_out, ranks, tmp_path / "meeting", ranks=ranks)
