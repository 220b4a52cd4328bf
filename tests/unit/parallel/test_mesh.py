"""The mesh of one process, and what a mesh refuses."""

from __future__ import annotations

import pytest
import torch

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.parallel.branches import share
from omnimuse.parallel.collectives import broadcast_bytes
from omnimuse.parallel.mesh import ORDER, PARTS, Mesh, lines


def test_a_single_process_is_a_mesh_of_one_leader() -> None:
    mesh = Mesh.single()
    assert (mesh.rank, mesh.size, mesh.is_leader) == (0, 1, True)
    assert (mesh.axis("branches").size, mesh.axis("branches").index) == (1, 0)


def test_an_axis_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="no axis 'time'; it has: branches, pipe, ring"):
        Mesh.single().axis("time")


def test_several_ranks_without_a_process_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Mesh.from_process_group(ParallelConfig(cfg=2))


def test_alone_there_is_nothing_to_exchange() -> None:
    row = torch.ones(2, 3)
    assert broadcast_bytes(Mesh.single(), b"plan") == b"plan"
    assert share(Mesh.single(), {0: row}, [0])[0] is row


def test_a_row_that_nobody_evaluated_is_a_failure() -> None:
    outcome = share(Mesh.single(), {}, [0])[0]
    assert isinstance(outcome, ModelError)
    assert str(outcome) == "rank 0 was to evaluate row 0 and did not"


def test_a_prediction_that_is_no_floating_tensor_is_a_failure() -> None:
    outcome = share(Mesh.single(), {0: torch.ones(2, dtype=torch.int32)}, [0])[0]
    assert isinstance(outcome, ModelError)
    assert "torch.int32 (2,) cannot be shared" in str(outcome)


@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(tensor=2), ParallelConfig(ulysses=2, ring=3), ParallelConfig(cfg=2, ring=2, ulysses=3, tensor=2)],
)
def test_every_rank_is_on_one_line_of_every_axis(parallel: ParallelConfig) -> None:
    for axis in PARTS:
        assert sorted(rank for line in lines(parallel, axis) for rank in line) == list(range(parallel.ranks))
        for rank in range(parallel.ranks):
            seen = Mesh.planned(parallel, rank).axis(axis)
            assert seen.ranks[seen.index] == rank


def test_ranks_of_the_inner_axes_are_neighbours_and_parts_of_a_row_lie_in_the_order_of_ring_and_ulysses() -> None:
    parallel = ParallelConfig(cfg=2, ring=2, ulysses=2, tensor=2)
    assert [lines(parallel, axis)[0] for axis in ORDER] == [(0, 8), (0,), (0, 4), (0, 2), (0, 1)]
    assert lines(parallel, "sequence")[0] == (0, 2, 4, 6)
    assert lines(parallel, "work") == [tuple(range(8)), tuple(range(8, 16))]
