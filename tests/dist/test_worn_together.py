"""Ranks read together what requests are to wear: where one cannot, none of them goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Lora
from omnimuse.engine.local import start
from omnimuse.engine.wearing import try_on
from omnimuse.lora.adapter import Worn
from omnimuse.lora.adapters import Adapters
from tests.checkpoints import z_image
from tests.checkpoints.adapters import layers_of, write
from tests.invariants.conftest import Subject, run, with_params
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]


def away(home: Path) -> Callable[[Adapters, Sequence[Lora]], tuple[Worn, ...]]:
    """`Adapters.fetch` that finds nothing while there is a file `away`."""
    plain = Adapters.fetch

    def fetch(adapters: Adapters, loras: Sequence[Lora]) -> tuple[Worn, ...]:
        if (home / "away").exists():
            raise RequestError("style is not there", "loras")
        return plain(adapters, loras)

    return fetch


def on_rank(rank: int, folder: Path, home: Path) -> None:
    """Rank 1 finds no adapters while there is a file `away`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    if rank:
        mock.patch.object(Adapters, "fetch", away(home)).start()
    config = Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"),
        parallel=ParallelConfig(tensor=2),
        host=HostConfig(threads=1),
    )
    engine = start(config)  # rank 1 stays in here
    style = Lora(str(home / "style.safetensors"))
    (home / "away").touch()
    with pytest.raises(RequestError, match="rank 1: RequestError: style is not there"):
        try_on(engine, [style])
    asked = with_params(Subject(z_image.FAMILIES[0], folder).asks()[0], loras=[style])
    with pytest.raises(RequestError, match="rank 1: RequestError: style is not there"):
        run(engine, asked)
    (home / "away").unlink()
    with pytest.raises(RequestError, match=r"gone.safetensors is no file"):
        try_on(engine, [style, Lora(str(home / "gone.safetensors"))])
    try_on(engine, [style])
    run(engine, asked)
    (home / "away").touch()  # what it takes is known by now
    with pytest.raises(RequestError, match="rank 1: RequestError: style is not there"):
        run(engine, asked)
    (home / "away").unlink()
    run(engine, asked)
    engine.close()
    (home / "whole").touch()


def test_what_one_rank_cannot_read_none_wears_and_all_go_on(z_image_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "style.safetensors", layers_of(z_image_folder))
    play(on_rank, z_image_folder, tmp_path, ranks=2)
    assert (tmp_path / "whole").exists()


def half(rank: int, folder: Path, home: Path) -> None:
    """Each rank has half of the blocks, and of an adapter what is for these."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    config = Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"),
        parallel=ParallelConfig(pipe=2),
        host=HostConfig(threads=1),
    )
    engine = start(config)  # rank 1 stays in here
    try_on(engine, [Lora(str(home / "style.safetensors"))])
    [found] = engine.runner.pipeline.ctx.adapters.living
    (home / "sites").write_text("\n".join(path for _, path in found.products))
    engine.close()


def test_of_an_adapter_a_rank_has_what_is_for_its_blocks(z_image_folder: Path, tmp_path: Path) -> None:
    layers = {name: size for name, size in layers_of(z_image_folder).items() if name.startswith("layers.")}
    write(tmp_path / "style.safetensors", layers)
    play(half, z_image_folder, tmp_path, ranks=2)
    of_blocks = {path.split(".")[1] for path in (tmp_path / "sites").read_text().split()}
    assert of_blocks == {"0"} != {name.split(".")[1] for name in layers}
