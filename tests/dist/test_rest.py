"""Ranks sleep together: the weights of all leave, and come back to the bit, or those of none do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError, MemoryShortageError
from omnimuse.engine.local import start
from omnimuse.offload.stores import FileStore
from tests.checkpoints import z_image
from tests.invariants.conftest import Subject, drain, outputs, run, submit
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]


def filling(full: Path) -> Callable[[FileStore, int], Tensor]:
    """`FileStore.fetch` to a device that has no room while there is a file `full`."""
    plain = FileStore.fetch

    def fetch(store: FileStore, arena: int) -> Tensor:
        if full.exists():
            raise torch.OutOfMemoryError("out of memory")
        return plain(store, arena)

    return fetch


def on_rank(rank: int, folder: Path, home: Path) -> None:
    """Rank 1 has nowhere to put its weights where `waiting` is no folder, and no room for them while there is a file
    `full`.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    if rank:
        tempfile.tempdir = str(home / "waiting")
        mock.patch.object(FileStore, "fetch", filling(home / "full")).start()
    config = Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"),
        parallel=ParallelConfig(tensor=2),
        schedule=ScheduleConfig(company="always"),
        host=HostConfig(threads=1),
    )
    engine = start(config)  # rank 1 stays in here
    asks = Subject(z_image.FAMILIES[0], folder).asks()[:2]
    expected = run(engine, *asks)
    ids = submit(engine, *asks)
    events = engine.tick()
    assert engine.sleep() > 0
    assert engine.asleep and engine.tick() == []
    (home / "full").touch()
    with pytest.raises(MemoryShortageError, match=r"the weights cannot come back: rank 1: MemoryShortageError: waking"):
        engine.wake_up()
    assert engine.asleep, "those of rank 0 left again"
    (home / "full").unlink()
    engine.wake_up()
    events += engine.tick()
    (home / "waiting").rename(home / "gone")
    (home / "waiting").write_text("no folder")
    with pytest.raises(
        ConfigError,
        match=r"cannot leave: rank 1: ConfigError: the system's folder for temporary files, .*waiting, cannot be used",
    ):
        engine.sleep()
    assert not engine.asleep, "those of rank 0 came back"
    events += drain(engine)
    for id_, wanted in zip(ids, expected, strict=True):
        assert torch.equal(outputs(events, id_), wanted)
    engine.close()
    (home / "whole").touch()


def test_the_weights_of_all_ranks_leave_and_come_back_or_those_of_none(z_image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "waiting").mkdir()
    play(on_rank, z_image_folder, tmp_path, ranks=2)
    assert (tmp_path / "whole").exists()
