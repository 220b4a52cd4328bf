"""Memory that runs out on one rank: all try again with less, nobody waits for one that does not come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.config import Config, DecodeConfig, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.engine.engine import Engine, follow
from omnimuse.engine.local import start
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline import video
from omnimuse.worker.build import build
from omnimuse.worker.runner import Runner
from tests.checkpoints import wan, z_image
from tests.invariants.conftest import Subject, run, with_params
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

[WAN] = [family for family in wan.FAMILIES if family.name == "WanPipeline-2.1"]
FAMILIES = {"picture": z_image.FAMILIES[0], "video": WAN}
WAYS = {
    "each the whole": (ParallelConfig(tensor=2), None),
    "tiles shared": (ParallelConfig(ulysses=2, vae_tiles=2), 128),
}
"""How ranks share work, and the tiles that they begin with."""


def config(folder: Path, parallel: ParallelConfig, tile: int | None = None) -> Config:
    return Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"),
        parallel=parallel,
        decode=DecodeConfig(tile=tile),
        schedule=ScheduleConfig(company="always"),
        host=HostConfig(threads=1),
    )


def refusing(decode: Callable[..., Any], room: list[int], at: int) -> Callable[..., Any]:
    """`decode` on a rank on which latents of no more than `room` cells fit, which are its argument number `at`."""

    def inner(*given: Any, **named: Any) -> Any:
        latents: Tensor = given[at]
        if latents.shape[-1] * latents.shape[-2] > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*given, **named)

    return inner


def on_rank(rank: int, what: str, folder: Path, way: str, home: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    parallel, tile = WAYS[way]
    chosen = config(folder, parallel, tile)
    mesh = Mesh.from_process_group(parallel)
    built = build(chosen, mesh)
    runner, room = Runner(built.pipeline, chosen.schedule, built.resources), [64]
    if rank == 1:  # it alone runs out
        vae = built.pipeline.ctx.components["vae"]
        vae.decode = refusing(vae.decode, room, 0)
        video.decode_frames = refusing(video.decode_frames, room, 1)
        follow(runner)
        return
    engine = Engine(runner, built.door)
    ask = with_params(Subject(FAMILIES[what], folder).ask(0), width=192, height=192, output_type="pt")
    [found] = run(engine, ask)
    assert runner.retried_stages == {"decode": 1}
    save_file({"found": found.contiguous()}, home / "found.safetensors")
    engine.close()


@pytest.mark.costly
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", FAMILIES)
def test_a_rank_that_runs_out_of_memory_alone_has_all_of_them_decode_in_smaller_tiles(
    what: str, way: str, tmp_path: Path
) -> None:
    family = FAMILIES[what]
    folder = family.build(tmp_path / "model")
    play(on_rank, what, folder, way, tmp_path, ranks=2)
    engine = start(config(folder, ParallelConfig(), 64))
    ask = with_params(Subject(family, folder).ask(0), width=192, height=192, output_type="pt")
    [expected] = run(engine, ask)
    assert torch.allclose(load_file(tmp_path / "found.safetensors")["found"], expected, atol=1e-4)
    assert not torch.equal(expected, run(start(config(folder, ParallelConfig())), ask)[0])
    engine.close()
