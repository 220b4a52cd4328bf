"""How an elastic group of ranks is divided in a tick: into as many teams as end it soonest. Numbers only.

All ranks draw one request together, or teams of some draw one each, or several: what ranks exchange in a forward is
then less, and what they wait for each other more. Rank 0 decides, by what steps took so far; the simulator asks the
same of its table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omnimuse.worker.pace import ENOUGH, STALE, Apart, Kind, Measured, Offer, kind, worth

LOSS = 0.05
"""What of a step does not become less by sharing it, of one rank's: exchanges, norms, what is small. Until it is
measured; with so little, whoever is alone is drawn by all."""
TRIAL = 0.05
"""Of what a request alone has left, what one step of it may cost that is taken to see what other teams take."""

Share = Callable[[int], float]
"""Of so many ranks, what a step takes of one rank's."""


def usual_share(ranks: int, loss: float = LOSS) -> float:
    """What a step of so many ranks takes, of one rank's, where so much is lost."""
    return 1.0 if ranks == 1 else 1 / ranks + loss


class Shares:
    """What a step takes of so many ranks, by network and size: measured while running, reckoned until it is.

    Whoever is alone in an engine spends one of its steps on teams that were not seen enough, or not for long, where
    that costs little of what it has left; with company, teams are seen anyway.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Kind, int], Measured] = {}
        self._tried = ""

    def record(self, network: str, ranks: int, tokens: int, seconds: float) -> None:
        """A step of one state with so many row tokens took so many `ranks` so long."""
        for (of, _), measured in self._known.items():
            measured.since += of[0] == network
        self._known.setdefault((kind(network, tokens), ranks), Measured()).add(seconds / max(1, tokens))

    def among(self, offers: Sequence[Offer]) -> Share:
        """The shares of the largest of these, which takes longest; those reckoned where its network is not known."""
        largest = max(offers, key=lambda offer: offer.tokens, default=None)
        if largest is None or largest.network is None:
            return usual_share
        of = kind(largest.network, largest.tokens)
        if (alone := self._seconds(of, 1)) is None:
            return usual_share
        measured = {
            ranks: found / alone for each, ranks in self._known if each == of and (found := self._seconds(of, ranks))
        }
        losses = [max(0.0, share - 1 / ranks) for ranks, share in sorted(measured.items()) if ranks > 1]
        return lambda ranks: measured.get(ranks) or usual_share(ranks, losses[-1] if losses else LOSS)

    def trial(self, offer: Offer, divisions: Sequence[int]) -> int | None:
        """Into how many teams ranks are divided for one step of `offer`, which is alone, only to see what it takes."""
        if offer.network is None or offer.state == self._tried:
            return None
        share, ranks, of = self.among([offer]), divisions[-1], kind(offer.network, offer.tokens)
        best = min(share(ranks // teams) for teams in divisions)
        for teams in divisions:
            cheap = share(ranks // teams) - best <= TRIAL * best * offer.steps
            if cheap and self._is_due(of, ranks // teams):
                self._tried = offer.state
                return teams
        return None

    def table(self) -> list[tuple[str, int, int, float]]:
        """(network, row tokens, ranks, time over that of one rank) for all that was measured enough."""
        kinds = sorted({(*of, ranks) for of, ranks in self._known})
        return [
            (network, 2**size, ranks, found / alone)
            for network, size, count, ranks in kinds
            if (alone := self._seconds((network, size, count), 1)) is not None
            and (found := self._seconds((network, size, count), ranks)) is not None
        ]

    def _seconds(self, of: Kind, ranks: int) -> float | None:
        """Of a token; None until it was measured enough."""
        found = self._known.get((of, ranks))
        return None if found is None or len(found.values) < ENOUGH else found.middle

    def _is_due(self, of: Kind, ranks: int) -> bool:
        found = self._known.get((of, ranks))
        return found is None or len(found.values) < ENOUGH or found.since > STALE


def joins(offers: Sequence[Offer], divisions: Sequence[int], share: Share = usual_share) -> bool:
    """Whether the last of `offers` should step in one tick with the others, by its row tokens."""
    loads = [float(max(1, offer.tokens)) for offer in offers]
    *others, own = (load * share(divisions[-1]) for load in loads)
    *ends, end = (offer.ends / seconds for offer, seconds in zip(offers, (*others, own), strict=True))
    before, together = (teams_for(some, divisions, share)[1] for some in (loads[:-1], loads))
    return worth(Apart(sum(others), own, sum(ends), end), before, together)


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


def teams_for(loads: Sequence[float], divisions: Sequence[int], share: Share = usual_share) -> tuple[int, float]:
    """How many teams end soonest with steps that take `loads` of one rank, and when; fewer where it is the same.

    `divisions` are the numbers of teams that there can be, the last of which has one rank in each.
    """
    ranks = divisions[-1]
    ends = {teams: longest(loads, teams) * share(ranks // teams) for teams in divisions}
    best = min(divisions, key=lambda teams: ends[teams])
    return best, ends[best]
