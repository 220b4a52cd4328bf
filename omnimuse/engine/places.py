"""How much there is of places, and what of it is taken by whom: asked by `scheduler.py` whether somebody fits in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from omnimuse.core.request import Request
from omnimuse.engine.needs import NONE, NOTHING, Kept, Need

FOREVER = float("inf")


States = Callable[[str], int]
"""(request id) -> the bytes that its states go on to take where others are computed when they are paused."""


@dataclass(eq=False)
class Entry:
    """A request the scheduler knows. `tokens` is what a step of one output costs, as far as known before it starts,
    `bytes` what one output may come to remember, `need` what one is foretold to take, nothing as long as nobody knows,
    and `kept` what the request keeps now beside that.

    `due` is when it counts as late, `left` the work still to do. `active` requests hold a place among those in
    progress, since `placed`; `begun` ones have states, which wait on the CPU while they are not active; `held` ones are
    paused. `ran` is how long it has held a place in all.
    """

    request: Request
    tokens: int
    arrival: int
    due: float
    left: int
    live: list[str] = field(default_factory=list)
    active: bool = False
    begun: bool = False
    held: bool = False
    placed: float = 0.0
    ran: float = 0.0
    bytes: int = 0
    need: Need = NOTHING
    kept: Kept = NONE
    deadline: float = field(init=False)
    """When its result is wanted, at the latest."""

    def __post_init__(self) -> None:
        self.deadline = FOREVER if self.request.deadline is None else self.request.deadline

    def needs(self, guess: Callable[[Request], Need]) -> Need:
        """What one output needs; by a `guess` where nobody knows."""
        return self.need if self.need.foretold else guess(self.request).wearing(self.need.worn, self.need.joined)

    @property
    def steps(self) -> float:
        """How many steps of all its outputs are to come."""
        return self.left / max(1, self.tokens * len(self.live))


class Room:
    """How much is in progress, in all and of each tenant, and whether something fits beside it, what all have `kept`
    and what those need who are `resting`.
    """

    def __init__(self, most: Amount, share: float, entries: Iterable[Entry], kept: Kept, resting: Need) -> None:
        self._most, self._share = most, most.part(share)
        self._kept, self._parked = kept, 0
        self._all = Amount(worn=Counter(resting.worn.items()))
        self._tenants: dict[str, Amount] = {}
        for entry in entries:
            self.take(entry)

    def fits(self, entry: Entry) -> bool:
        """Whether `entry` fits; anything fits where nothing is, unless somebody has to go for that who stays there, or
        what is worn already leaves no room for what it wears.
        """
        if not self.wearable(entry):
            return False
        states = self._kept.states - entry.kept.states
        most = replace(
            self._most,
            bytes=self._most.bytes - states,
            beside=self._most.beside - states - self._kept.finished,
        )
        return (not self._all.outputs and not self._parked) or self._all.has_room(entry, most)

    def wearable(self, entry: Entry) -> bool:
        """Whether what `entry` wears has room beside what others do."""
        return self._all.wears_beside(entry, self._most)

    @property
    def worn(self) -> int:
        """The bytes of what all wear, each counted once."""
        return sum(self._all.worn_once().values())

    def shared(self, entry: Entry) -> bool:
        """Whether the share of its tenant has room for `entry`; anything fits where the tenant has nothing."""
        there = self._tenants.get(entry.request.tenant, Amount())
        return not there.outputs or there.has_room(entry, self._share)

    def take(self, entry: Entry) -> None:
        """Count `entry` in."""
        self._all.add(entry)
        self._tenants.setdefault(entry.request.tenant, Amount()).add(entry)
        self._kept = self._kept._replace(states=self._kept.states - entry.kept.states)

    def clear(
        self, enough: Callable[[Entry], bool], newcomer: Entry, entries: Iterable[Entry], states: States
    ) -> list[Entry]:
        """Count out the first of `entries`, but for what their states keep and what they wear, until there is `enough`
        for the newcomer; returns them.
        """
        left = list[Entry]()
        for entry in entries:
            if enough(newcomer):
                break
            self._all.add(entry, -1)
            self._all.worn.update(entry.need.worn.items())
            self._tenants[entry.request.tenant].add(entry, -1)
            stays = states(entry.request.id)
            self._kept = self._kept.and_of(Kept(states=stays))
            self._parked += stays + sum(entry.need.worn.values())
            left.append(entry)
        return left


@dataclass
class Amount:
    """Outputs, the tokens that a step of all of them costs, the bytes that they may come to remember, those that they
    are foretold to take `beside` each other, and of each request those `beyond` while one output has them alone, and
    what is `worn`, by how many, of `wearable` bytes at most, and what each has `joined`.
    """

    outputs: float = 0.0
    tokens: float = 0.0
    bytes: float = 0.0
    beside: float = 0.0
    beyond: list[int] = field(default_factory=list)
    worn: Counter[tuple[str, int]] = field(default_factory=Counter)
    joined: list[int] = field(default_factory=list)
    wearable: float = FOREVER

    def part(self, share: float) -> Amount:
        """A `share` of it, 0 to 1."""
        return Amount(self.outputs * share, self.tokens * share, self.bytes * share, self.beside * share)

    def add(self, entry: Entry, times: int = 1) -> None:
        """Count the outputs of `entry`."""
        self.outputs += times * len(entry.live)
        self.tokens += times * len(entry.live) * entry.tokens
        self.bytes += times * len(entry.live) * entry.bytes
        self.beside += times * len(entry.live) * entry.need.beside
        for each, value in ((self.beyond, entry.need.beyond), (self.joined, entry.need.joined)):
            (each.append if times > 0 else each.remove)(value)
        self.worn.update(dict.fromkeys(entry.need.worn.items(), times))

    def has_room(self, entry: Entry, most: Amount) -> bool:
        """Whether `entry` fits in beside what is there."""
        outputs, tokens = self.outputs + len(entry.live), self.tokens + len(entry.live) * entry.tokens
        held, beside = self.bytes + len(entry.live) * entry.bytes, self.beside + len(entry.live) * entry.need.beside
        alone = max([entry.need.beyond, *self.beyond]) + max([entry.need.joined, *self.joined])
        taken = beside + alone + sum((self.worn_once() | dict(entry.need.worn)).values())
        return outputs <= most.outputs and tokens <= most.tokens and held <= most.bytes and taken <= most.beside

    def wears_beside(self, entry: Entry, most: Amount) -> bool:
        """Whether there is room for what `entry` wears beside what others do; there is where nobody wears anything."""
        worn = self.worn_once()
        return not worn or not entry.need.worn or sum((worn | dict(entry.need.worn)).values()) <= most.wearable

    def worn_once(self) -> dict[str, int]:
        """What is worn, however many wear it, by its id."""
        return {name: size for (name, size), count in self.worn.items() if count}
