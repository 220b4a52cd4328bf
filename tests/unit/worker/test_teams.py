"""How many teams an elastic group of ranks is divided into."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.parallel.mesh import ALL, BRANCHES, SEQUENCE, ULYSSES, WORK, Mesh
from omnimuse.worker.pace import ENOUGH, STALE, Offer
from omnimuse.worker.teams import Shares, longest, shared_out, teams_for, usual_share


@pytest.mark.parametrize(
    ("loads", "teams"),
    [([8.0], 1), ([8.0, 8.0], 2), ([8.0] * 3, 1), ([8.0] * 4, 4), ([8.0, 0.5], 1), ([8.0, 4.0, 4.0], 2), ([], 1)],
)
def test_ranks_are_divided_as_far_as_that_ends_the_tick_sooner(loads: Sequence[float], teams: int) -> None:
    assert teams_for(loads, (1, 2, 4))[0] == teams


def test_without_a_loss_all_ranks_are_best_together() -> None:
    assert teams_for([5.0] * 4, (1, 2, 4), lambda ranks: 1 / ranks) == (1, 5.0)


ALONE = Offer("a/0", 64, 200.0, "net")


def seen(**seconds: float) -> Shares:
    """What so many ranks took, `on_2=0.5` of one rank's second."""
    shares = Shares()
    for name, each in seconds.items():
        for _ in range(ENOUGH):
            shares.record("net", int(name.removeprefix("on_")), 64, each)
    return shares


def divided(shares: Shares, *offers: Offer) -> int:
    return teams_for([offer.tokens for offer in offers], (1, 2, 4), shares.among(offers))[0]


def test_what_ranks_took_decides_once_it_was_seen() -> None:
    assert divided(Shares(), ALONE) == 1
    assert divided(seen(on_1=1.0, on_2=0.6, on_4=0.9), ALONE) == 2, "what four exchange takes longer than it gains"
    assert divided(seen(on_1=1.0, on_2=2.0, on_4=2.0), ALONE) == 4, "one rank alone is quickest"
    assert divided(seen(on_1=1.0, on_4=0.25), ALONE, ALONE) == 1, "nothing is lost by sharing"


def test_what_was_not_seen_is_reckoned_by_what_was() -> None:
    share = seen(on_1=1.0, on_4=0.45).among([ALONE])
    assert share(4) == pytest.approx(0.45)
    assert share(2) == pytest.approx(0.7), "as much is lost as with four"
    for unknown in (Shares(), seen(on_4=0.45)):
        assert unknown.among([ALONE])(2) == usual_share(2)
    assert seen(on_1=1.0, on_4=0.45).among([Offer("b/0", 4096, 9.0, "net")])(4) == usual_share(4), "another size"


def test_who_is_alone_spends_one_step_on_teams_that_were_not_seen_enough() -> None:
    shares, tried = Shares(), list[int | None]()
    for number in range(20):
        alone = ALONE._replace(state=f"{number}/0")
        teams = shares.trial(alone, (1, 2, 4))
        tried.append(teams)
        assert shares.trial(alone, (1, 2, 4)) is None, "one step of a request"
        if teams is not None:
            shares.record("net", 4 // teams, 64, 1.0)
    assert tried == [1] * ENOUGH + [2] * ENOUGH + [4] * ENOUGH + [None] * (20 - 3 * ENOUGH)
    assert [(tokens, ranks) for _, tokens, ranks, _ in shares.table()] == [(64, 1), (64, 2), (64, 4)]
    for _ in range(STALE + 1):
        shares.record("net", 4, 64, 1.0)
    assert shares.trial(ALONE, (1, 2, 4)) == 2, "the others were not seen for long"


def test_a_step_that_costs_much_of_what_is_left_is_not_spent() -> None:
    shares = seen(on_4=0.3)
    assert shares.trial(ALONE._replace(steps=10.0), (1, 2, 4)) is None
    assert shares.trial(ALONE._replace(steps=20.0), (1, 2, 4)) == 2
    assert shares.trial(ALONE._replace(state="b/0", steps=60.0, network=None), (1, 2, 4)) is None


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
