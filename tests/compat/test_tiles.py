"""Tiles of autoencoders of the contract that ranks share: what is made is what one rank makes, bit for bit."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from omnimuse.compat.contract.make import shared_tiles
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl import shared_out
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.distributed_vae_executor import (
    DistributedOperator,
    DistributedVaeMixin,
    GridSpec,
    TileTask,
    dealt,
)
from omnimuse.core.config import DecodeConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.parallel.mesh import Mesh
from tests.checkpoints import hunyuan_video15, ltx2, qwen_image, wan
from tests.checkpoints.stable_diffusion_3 import build
from tests.checkpoints.wishes import Wish, of_picture
from tests.compat.running import config, drawn, on_two_ranks, running
from tests.decoding import filled, random_latents
from tests.ranks import play

ranks = pytest.mark.dist
WISH = Wish("a fox", "snow", of_picture(2, 3.0, 96, 64, 7))
KINDS: dict[str, tuple[Any, int, int]] = {
    "wan": (wan.vae, 8, 16),
    "wan in patches": (wan.deep_vae, 16, wan.DEEP_CHANNELS),
    "qwen_image": (qwen_image.vae, 8, 16),
    "hunyuan": (hunyuan_video15.vae, 16, hunyuan_video15.CHANNELS),
    "ltx2": (ltx2.vae, 32, ltx2.CHANNELS),
}
"""What makes the autoencoder, how many pixels a cell has, and how many channels latents have."""


class Halves(nn.Module, DistributedVaeMixin):
    """An autoencoder of its own, whose rows are decoded in pieces of unequal length; pieces of one rank may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.use_tiling = True
        self.init_distributed()
        self.decoder = nn.Conv2d(2, 3, 1)
        self.calls = 0

    def split(self, z: Tensor) -> tuple[list[TileTask], GridSpec]:
        pieces = z.split([1, 8, 2, z.shape[2] - 11], dim=2)
        tasks = [TileTask(number, (number,), each, each.shape[2]) for number, each in enumerate(pieces)]
        return tasks, GridSpec((2,), (len(tasks),), {"order": [0, 1, 2, 3]}, torch.float64)

    def exec(self, task: TileTask) -> Tensor:
        self.calls += 1
        found: Tensor = self.decoder(task.tensor)
        return found

    def merge(self, found: dict[tuple[int, ...], Tensor], grid: GridSpec) -> Tensor:
        return torch.cat([found[number,] for number in grid.tile_spec["order"]], dim=2)

    def decode(self, z: Tensor, broadcast: bool = True) -> Tensor:
        if not self.is_distributed_enabled():
            whole: Tensor = self.decoder(z)
            return whole
        operator = DistributedOperator(split=self.split, exec=self.exec, merge=self.merge)
        made: Tensor = self.distributed_executor.execute(z, operator, broadcast_result=broadcast)
        return made


def shared(rank: int, count: int, meeting: Path) -> None:
    """On every rank: alone, and together."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    mesh = Mesh.from_process_group(ParallelConfig(tensor=count))
    with torch.inference_mode(), within(Surroundings(torch.device("cpu"), torch.float32, mesh, None)):
        _halves(rank, count)
        for name, (make, ratio, channels) in KINDS.items():
            vae = filled(make)
            vae.__class__ = shared_out(type(vae))
            tile, stride = 4 * ratio, 3 * ratio
            sides = {"tile_sample_min_height": tile, "tile_sample_min_width": tile}
            if name == "hunyuan":
                sides |= {"tile_latent_min_height": 4, "tile_latent_min_width": 4}
            else:
                sides |= {"tile_sample_stride_height": stride, "tile_sample_stride_width": stride}
            vae.enable_tiling(**sides)
            latents = random_latents(1, channels, 2, 5, 8)
            alone = vae.decode(latents, return_dict=False)[0]
            vae.set_parallel_size(count)
            together = vae.decode(latents, return_dict=False)[0]
            assert alone.shape[3] == 5 * ratio, name
            assert torch.equal(alone, together), name
    mesh.close()
    dist.destroy_process_group()


def _halves(rank: int, count: int) -> None:
    torch.manual_seed(1)
    vae, z = Halves(), torch.randn(1, 2, 12, 5)
    whole = vae.decode(z)
    vae.set_parallel_size(count)
    for broadcast in (True, False):
        together = vae.decode(z, broadcast)
        assert together.dtype == torch.float64
        torch.testing.assert_close(together.float(), whole, atol=1e-6, rtol=0)
    assert vae.calls == 2 * [1, 3][rank]
    assert (vae.distributed_executor.world_size, vae.distributed_executor.rank) == (count, rank)


@pytest.mark.costly(turns=3)
@ranks
@pytest.mark.timeout(240)
def test_tiles_that_two_ranks_share_are_those_of_one(tmp_path: Path) -> None:
    play(shared, 2, tmp_path / "meeting", ranks=2)


@ranks
@pytest.mark.timeout(240)
def test_every_kind_of_diffusers_is_decoded_by_two_ranks_as_by_one(tmp_path: Path) -> None:
    folder = build(tmp_path / "tiny", kind="3")
    with running(config(folder, "DocumentedPipeline", decode=DecodeConfig(tiling=True))) as engine:
        expected = drawn(engine, [WISH])
    for arch in ("DocumentedPipeline", "DocumentedStepPipeline"):
        chosen = config(folder, arch, parallel=ParallelConfig(tensor=2, vae_tiles=2))
        found, _ = on_two_ranks(chosen, [WISH], tmp_path / arch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_on_one_rank_tiles_are_decoded_as_ever() -> None:
    vae, z = Halves(), torch.randn(1, 2, 12, 5)
    vae.set_parallel_size(2)
    assert not vae.is_distributed_enabled()  # outside of an engine
    with within(Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), None)):
        assert not vae.is_distributed_enabled()
        assert torch.equal(vae.decode(z), vae.decoder(z))
        operator = DistributedOperator(vae.split, vae.exec, vae.merge)
        found = vae.distributed_executor.execute(z, operator)
    torch.testing.assert_close(found.float(), vae.decoder(z))
    with pytest.raises(ModelError, match="vae_parallel_mode='patch' is not here"):
        vae.set_parallel_size(2, mode="patch")
    name = "omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl"
    assert not issubclass(import_module(name).DistributedAutoencoderTiny, nn.Linear)


def test_tiles_go_to_whoever_has_least_to_do() -> None:
    tasks = [TileTask(number, (number,), None, work) for number, work in enumerate((1, 8, 2, 1))]
    assert dealt(tasks, 2) == [1, 0, 1, 1]
    assert dealt(tasks, 1) == [0, 0, 0, 0]
    assert dealt(tasks[:1], 3) == [0]


def test_a_pipeline_without_such_an_autoencoder_is_refused_the_tiles() -> None:
    with pytest.raises(ConfigError, match="no part of Linear is a DistributedVaeMixin; build its autoencoder as"):
        shared_tiles(nn.Linear(1, 1), 2)
