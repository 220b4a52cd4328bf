"""How many teams an elastic group of ranks is divided into."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.parallel.mesh import ALL, BRANCHES, SEQUENCE, ULYSSES, WORK, Mesh
from omnimuse.worker.teams import longest, shared_out, teams_for


@pytest.mark.parametrize(
    ("loads", "teams"),
    [([8.0], 1), ([8.0, 8.0], 2), ([8.0] * 3, 1), ([8.0] * 4, 4), ([8.0, 0.5], 1), ([8.0, 4.0, 4.0], 2), ([], 1)],
)
def test_ranks_are_divided_as_far_as_that_ends_the_tick_sooner(loads: Sequence[float], teams: int) -> None:
    assert teams_for(loads, (1, 2, 4))[0] == teams


def test_without_a_loss_all_ranks_are_best_together() -> None:
    assert teams_for([5.0] * 4, (1, 2, 4), lambda ranks: 1 / ranks) == (1, 5.0)


def test_the_largest_goes_to_the_team_that_has_least() -> None:
    assert shared_out([1.0, 5.0, 3.0, 2.0], 2) == [0, 0, 1, 1]
    assert longest([1.0, 5.0, 3.0, 2.0], 2) == 6.0


def test_a_divided_mesh_has_its_teams_along_the_branches() -> None:
    config = ParallelConfig(ulysses=4, elastic=True)
    assert config.divisions == (1, 2, 4)
    mesh = Mesh.planned(config, rank=3, teams=2)
    assert (mesh.axis(ULYSSES).ranks, mesh.axis(BRANCHES).ranks) == ((2, 3), (1, 3))
    assert mesh.axis(WORK).ranks == mesh.axis(SEQUENCE).ranks == (2, 3)
    assert mesh.axis(ALL).size == 4
    assert ParallelConfig(ulysses=4).divisions == (1,)


@pytest.mark.parametrize("axes", [{}, {"ulysses": 2, "tensor": 2}, {"ring": 4}, {"ulysses": 4, "shard": 4}])
def test_what_shares_more_than_tokens_and_heads_cannot_be_divided(axes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="parallel elastic cannot be with"):
        ParallelConfig(**axes, elastic=True)  # type: ignore[arg-type]
