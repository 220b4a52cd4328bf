"""How an elastic group of ranks is divided in a tick: into as many teams as end it soonest. Numbers only.

All ranks draw one request together, or teams of some draw one each, or several: what ranks exchange in a forward is
then less, and what they wait for each other more. Rank 0 decides, the simulator asks the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omnimuse.worker.pace import Offer, worth

LOSS = 0.05
"""What of a step does not become less by sharing it, of one rank's: exchanges, norms, what is small (a guess that makes
whoever is alone be drawn by all)."""


def usual_share(ranks: int) -> float:
    """What a step of so many ranks takes, of one rank's."""
    return 1.0 if ranks == 1 else 1 / ranks + LOSS


def joins(offers: Sequence[Offer], divisions: Sequence[int], share: Callable[[int], float] = usual_share) -> bool:
    """Whether the last of `offers` should step in one tick with the others, by its row tokens."""
    loads = [float(max(1, offer.tokens)) for offer in offers]
    apart = [load * share(divisions[-1]) for load in loads]
    before, together = (teams_for(some, divisions, share)[1] for some in (loads[:-1], loads))
    return worth(offers, apart, before, together)


def shared_out(loads: Sequence[float], teams: int) -> list[int]:
    """Which team takes each of the `loads`: the largest first, to the team that has least."""
    held, found = [0.0] * teams, [0] * len(loads)
    for number in sorted(range(len(loads)), key=lambda number: -loads[number]):
        found[number] = min(range(teams), key=held.__getitem__)
        held[found[number]] += loads[number]
    return found


def longest(loads: Sequence[float], teams: int) -> float:
    """What the team that has most has of `loads`."""
    found = shared_out(loads, teams)
    return max(sum(load for load, at in zip(loads, found, strict=True) if at == team) for team in range(teams))


def teams_for(
    loads: Sequence[float], divisions: Sequence[int], share: Callable[[int], float] = usual_share
) -> tuple[int, float]:
    """How many teams end soonest with steps that take `loads` of one rank, and when; fewer where it is the same.

    `divisions` are the numbers of teams that there can be, the last of which has one rank in each.
    """
    ranks = divisions[-1]
    ends = {teams: longest(loads, teams) * share(ranks // teams) for teams in divisions}
    best = min(divisions, key=lambda teams: ends[teams])
    return best, ends[best]
