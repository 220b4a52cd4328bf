"""Parts of a recording come to rank 0 from disks of their own, and what one disk refuses ends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from omnimuse.core.config import ParallelConfig
from omnimuse.engine.recordings import bring
from omnimuse.observe.profile import part_of
from omnimuse.worker.connect import connect
from tests.ranks import play

pytestmark = pytest.mark.dist


def on_rank(rank: int, folder: Path) -> None:
    """Rank 0's disk refuses the part of rank 1, and then wants none."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=3)
    mesh, path = connect(ParallelConfig(ulysses=3)), folder / "disk0" / "trace.json.gz"
    here = folder / f"disk{rank}" / path.name
    for wanted in (True, False):
        part_of(here, rank).write_bytes(b"rank %d" % rank)
        if rank == 0 and wanted:
            with pytest.raises(IsADirectoryError, match=str(path)):
                bring(mesh, path, here)
        else:
            bring(mesh, path, here, wanted=wanted)
        assert rank == 0 or not part_of(here, rank).exists()
        assert rank > 0 or part_of(here, 2).read_bytes() == b"rank 2", "that of the rank behind it came"
    mesh.close()


def test_a_disk_that_refuses_a_part_ends_no_rank(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / f"disk{rank}").mkdir()
    part_of(tmp_path / "disk0" / "trace.json.gz", 1).mkdir()
    play(on_rank, tmp_path, ranks=3)
