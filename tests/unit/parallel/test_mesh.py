"""The mesh of one process, and what a mesh refuses."""

from __future__ import annotations

import pytest
import torch

from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.parallel.branches import share
from omnimuse.parallel.collectives import broadcast_bytes
from omnimuse.parallel.mesh import Mesh


def test_a_single_process_is_a_mesh_of_one_leader() -> None:
    mesh = Mesh.single()
    assert (mesh.rank, mesh.size, mesh.is_leader) == (0, 1, True)
    assert (mesh.axis("branches").size, mesh.axis("branches").index) == (1, 0)


def test_an_axis_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="no axis 'tensor'; it has: branches"):
        Mesh.single().axis("tensor")


def test_several_ranks_without_a_process_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Mesh.from_process_group(cfg=2)


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
