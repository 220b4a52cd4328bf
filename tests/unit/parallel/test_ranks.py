"""Two gloo ranks: what the leader sends arrives, shared rows are equal everywhere, failures hang nobody."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import ConfigError, EngineDeadError, ModelError
from omnimuse.parallel.branches import MOST, Outcome, share
from omnimuse.parallel.collectives import LETTER, PREFIX, broadcast_bytes, greatest
from omnimuse.parallel.line import PATH, opened
from omnimuse.parallel.mesh import Mesh
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

OWNERS = [0, 1, 1, 0, 1]


def predictions() -> list[Tensor]:
    """One per row, of odd sizes and dtypes, so that the bytes of one row do not align with the next."""
    generator = torch.Generator().manual_seed(2)
    draw = [torch.randn(shape, generator=generator) for shape in [(2, 3), (3, 1, 5), (), (0, 4), (7,)]]
    draw[0][0, 0] = float("nan")
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.bfloat16]
    return [each.to(dtype) for each, dtype in zip(draw, dtypes, strict=True)]


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def owned(mesh: Mesh) -> dict[int, Outcome]:
    return {i: row for i, row in enumerate(predictions()) if OWNERS[i] == mesh.rank}


def all_rows_arrive(mesh: Mesh) -> None:
    for _ in range(3):
        outcomes = share(mesh, owned(mesh), OWNERS)
        for outcome, row in zip(outcomes, predictions(), strict=True):
            assert isinstance(outcome, Tensor)
            assert (outcome.dtype, outcome.shape, bits(outcome)) == (row.dtype, row.shape, bits(row))


def other_divisions_of_the_work_arrive(mesh: Mesh) -> None:
    assert share(mesh, {}, []) == []
    only = torch.arange(3.0)
    outcome = share(mesh, {0: only} if mesh.rank == 1 else {}, [1])[0]
    assert isinstance(outcome, Tensor)
    assert torch.equal(outcome, only)


def more_rows_than_one_exchange_tells_of_arrive(mesh: Mesh) -> None:
    owners = [0] * (MOST + 3) + [1] * 2
    rows = {i: torch.full((2,), float(i)) for i, owner in enumerate(owners) if owner == mesh.rank}
    for i, outcome in enumerate(share(mesh, rows, owners)):
        assert isinstance(outcome, Tensor) and outcome.tolist() == [i, i]


def failing_rows_are_known_to_all(mesh: Mesh) -> None:
    rows = owned(mesh)
    if mesh.rank == 1:
        rows[1] = ValueError("the row is too long: ü")
        del rows[4]
    outcomes = share(mesh, rows, OWNERS)
    assert [isinstance(outcome, Tensor) for outcome in outcomes] == [True, False, True, True, False]
    assert isinstance(outcomes[1], ValueError if mesh.rank == 1 else ModelError)
    assert str(outcomes[1]).endswith("the row is too long: ü")
    assert str(outcomes[4]) == "rank 1 was to evaluate row 4 and did not"
    all_rows_arrive(mesh)


def the_leaders_bytes_arrive(mesh: Mesh) -> None:
    whole = bytes(range(256)) * (LETTER // 256)
    assert mesh.line is not None
    for way in (mesh, replace(mesh, line=None)):  # as ranks of one machine talk, and as those of several
        for payload in (b"plan", b"", whole[PREFIX:], whole[PREFIX - 1 :], 100 * whole):
            assert broadcast_bytes(way, payload if mesh.is_leader else None) == payload


def a_place_that_a_rank_does_not_find_is_no_line(mesh: Mesh) -> None:
    """As on another machine: rank 0's place is not there."""
    assert mesh.control is not None
    if mesh.is_leader:
        assert opened(0, 2, mesh.control, 5.0) is None
        return
    dist.broadcast(torch.zeros(PATH, dtype=torch.uint8), src=0, group=mesh.control)
    dist.all_reduce(torch.tensor([0]), group=mesh.control)


def the_mesh_knows_its_ranks(mesh: Mesh) -> None:
    axis = mesh.axis("branches")
    assert (mesh.size, axis.size, axis.index, axis.ranks) == (2, 2, mesh.rank, (0, 1))
    assert mesh.is_leader == (mesh.rank == 0)
    with pytest.raises(ConfigError, match="tensor=3 needs 3 ranks, and there are 2"):
        Mesh.from_process_group(ParallelConfig(tensor=3))


def ranks_that_disagree_stop(mesh: Mesh) -> None:
    with pytest.raises(EngineDeadError, match=r"disagree about the rows of this tick \(5, 4\)"):
        share(mesh, owned(mesh), OWNERS if mesh.rank == 0 else OWNERS[:-1])
    all_rows_arrive(mesh)


def what_is_no_number_on_a_rank_is_no_finite_one_on_any(mesh: Mesh) -> None:
    """Which of the two is the larger depends on who asks, and a device may leave out what is no number."""
    axis = mesh.axis("branches")
    for broken in range(2):
        own = torch.tensor([[torch.nan if mesh.rank == broken else 3.0], [1.0 + mesh.rank]])
        odd, plain = greatest(axis, own).flatten().tolist()
        assert not isfinite(odd) and plain == 2


def a_rank_that_dies_is_noticed(mesh: Mesh) -> None:
    dist.barrier()  # both groups have connected everybody before one goes
    dist.barrier(mesh.control)
    if mesh.rank == 1:
        os._exit(0)
    with pytest.raises(EngineDeadError, match="can no longer talk"):
        share(mesh, owned(mesh), OWNERS)
    for way in (mesh, replace(mesh, line=None)):
        with pytest.raises(EngineDeadError, match="can no longer talk"):
            keep_sending(way)
    os._exit(0)


def keep_sending(mesh: Mesh) -> None:
    """More than the buffer of a socket whose other end is gone can take."""
    for _ in range(100):
        broadcast_bytes(mesh, bytes(100_000))


def a_leader_that_dies_is_noticed(mesh: Mesh) -> None:
    if mesh.is_leader:
        os._exit(0)
    with pytest.raises(EngineDeadError, match="rank 0 has closed the line"):
        broadcast_bytes(mesh, None)
    os._exit(0)


SCENES: list[Callable[[Mesh], None]] = [
    the_mesh_knows_its_ranks,
    the_leaders_bytes_arrive,
    a_place_that_a_rank_does_not_find_is_no_line,
    all_rows_arrive,
    other_divisions_of_the_work_arrive,
    more_rows_than_one_exchange_tells_of_arrive,
    failing_rows_are_known_to_all,
    what_is_no_number_on_a_rank_is_no_finite_one_on_any,
    ranks_that_disagree_stop,
]


def _play(rank: int, meeting: str, scenes: list[Callable[[Mesh], None]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = Mesh.from_process_group(ParallelConfig(cfg=2))
    for scene in scenes:
        scene(mesh)
    mesh.close()
    dist.destroy_process_group()


def test_two_ranks_tell_one_another_everything(tmp_path: Path) -> None:
    play(_play, str(tmp_path / "meeting"), SCENES, ranks=2)


@pytest.mark.parametrize("scene", [a_rank_that_dies_is_noticed, a_leader_that_dies_is_noticed])
def test_a_rank_that_dies_is_noticed_by_the_other(tmp_path: Path, scene: Callable[[Mesh], None]) -> None:
    play(_play, str(tmp_path / "meeting"), [scene], ranks=2)
