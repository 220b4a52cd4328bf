"""How many replicas there should be: more while work waits, fewer once some were idle for long.

The pool of workers asks, and the simulator, on its own clock. Pure bookkeeping: it starts and ends nothing. No torch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from omnimuse.core.errors import ConfigError
from omnimuse.deploy.routing import Place

LOOK = 0.25
"""Seconds between two looks at who waits and who is idle."""
HOPELESS = 300.0
"""Seconds in which no replica is added after one could not be started."""
GRACE = 10.0
"""Seconds in which a worker that is not needed any more ends by itself."""


@dataclass(frozen=True)
class Scale:
    """At `least` so many replicas, and at `most`.

    There are more once a request has waited `grow_after` seconds for its first step, and one less when at no moment of
    `shrink_after` seconds all of them had work.
    """

    least: int = 1
    most: int = 1
    grow_after: float = 5.0
    shrink_after: float = 300.0

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError(f"--replicas {self.least} is not allowed; use at least 1")
        if self.most < self.least:
            raise ConfigError(
                f"--max-replicas {self.most} is fewer than the {self.least} of --replicas; use {self.least} or more"
            )
        for name, value in (("--grow-after", self.grow_after), ("--shrink-after", self.shrink_after)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} {value:g} is not allowed; use a number of seconds above 0")

    @classmethod
    def fixed(cls, replicas: int) -> Scale:
        """Always so many."""
        return cls(replicas, replicas)

    @property
    def moves(self) -> bool:
        """Whether their number may change."""
        return self.most > self.least


@dataclass(frozen=True)
class Seen:
    """What a look found: all replicas, those of them that are not ready yet, those without work, and since when each
    request that has not begun waits.
    """

    replicas: int
    coming: int
    idle: int
    waiting: Sequence[float]


class Scaler:
    """Remembers what it takes to decide; `now` is in seconds of any clock.

    It adds one replica for each request that has waited too long, at most as many as there are: loads that double are
    met in few steps, and one long queue does not start a hundred. While any is coming it adds none: who waits by
    then may be served by that. Where one could not be started, none is added for a while.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._missed: deque[float] = deque()
        self._settled = -math.inf
        self._spare: float | None = None

    def missed(self, now: float) -> None:
        """A request was refused that more replicas would have served: as if it waited from now on, and gave up."""
        if self.scale.moves:
            self._missed.append(now)

    def busy(self) -> None:
        """Every replica has work."""
        self._spare = None

    def failed(self, now: float) -> None:
        """A replica that was added could not be started."""
        self._settled = now + HOPELESS

    def wanted(self, now: float, seen: Seen) -> int:
        """How many replicas there should be."""
        scale = self.scale
        while self._missed and now - self._missed[0] > 2 * scale.grow_after:
            self._missed.popleft()
        waiting = [*seen.waiting, *self._missed]
        if seen.coming:
            self._settled = max(self._settled, now)
        late = sum(now - max(since, self._settled) >= scale.grow_after for since in waiting)
        if late and not seen.coming and seen.replicas < scale.most:
            self._spare = None
            return min(scale.most, seen.replicas + min(late, seen.replicas))
        if waiting or not seen.idle or seen.replicas <= scale.least:
            self._spare = None
            return seen.replicas
        self._spare = now if self._spare is None else self._spare
        if now - self._spare < scale.shrink_after:
            return seen.replicas
        self._spare = None
        return seen.replicas - 1


P = TypeVar("P", bound=Place)
W = TypeVar("W")


def to_move(places: Iterable[P], waiting: Callable[[P], Sequence[W]]) -> list[W]:
    """What waits at full places and is to go elsewhere, since a place has no work: all have as much then.

    `waiting` tells what has not begun at a place, the last to come last; what has begun stays.
    """
    able = [place for place in places if place.open and place.holder is None]
    if all(place.load for place in able):
        return []
    even = math.ceil(sum(place.load for place in able) / len(able))
    found: list[W] = []
    for place in able:
        if place.load > even:
            found += waiting(place)[even - place.load :]
    return found
