"""How many replicas there should be, decided on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.deploy.scale import HOPELESS, Scale, Scaler, Seen, to_move

SCALE = Scale(least=1, most=8, grow_after=5.0, shrink_after=60.0)


def settled(scaler: Scaler, seen: Seen, until: float, since: float = 0.0) -> Iterator[int]:
    """What is wanted at every second from `since` until there."""
    now = since
    while now <= until:
        yield scaler.wanted(now, seen)
        now += 1.0


def test_a_replica_is_added_once_a_request_has_waited_too_long_and_not_before() -> None:
    scaler, seen = Scaler(SCALE), Seen(1, 0, 0, [0.0])
    assert list(settled(scaler, seen, 6.0)) == [1, 1, 1, 1, 1, 2, 2]


def test_as_many_are_added_as_wait_too_long_but_no_more_than_there_are_nor_than_allowed() -> None:
    assert Scaler(SCALE).wanted(9.0, Seen(1, 0, 0, [0.0] * 9)) == 2
    assert Scaler(SCALE).wanted(9.0, Seen(4, 0, 0, [0.0, 1.0, 8.0])) == 6
    assert Scaler(SCALE).wanted(9.0, Seen(6, 0, 0, [0.0] * 9)) == 8
    assert Scaler(SCALE).wanted(9.0, Seen(8, 0, 0, [0.0] * 9)) == 8
    assert Scaler(Scale.fixed(2)).wanted(9.0, Seen(2, 0, 0, [0.0] * 9)) == 2


def test_while_a_replica_is_coming_none_is_added_and_then_waiting_counts_anew() -> None:
    scaler, waiting = Scaler(SCALE), [0.0] * 4
    assert set(settled(scaler, Seen(2, 1, 0, waiting), 30.0)) == {2}
    assert list(settled(scaler, Seen(2, 0, 0, waiting), 35.0, since=31.0)) == [2, 2, 2, 2, 4]


def test_one_is_sent_away_when_some_had_no_work_for_long_and_the_next_one_after_as_long_again() -> None:
    scaler = Scaler(SCALE)
    assert [*settled(scaler, Seen(3, 0, 1, []), 60.0)] == [3] * 60 + [2]
    assert [*settled(scaler, Seen(2, 0, 1, []), 121.0, since=61.0)] == [2] * 60 + [1]
    assert set(settled(scaler, Seen(1, 0, 1, []), 900.0, since=122.0)) == {1}


def test_a_moment_in_which_all_had_work_or_somebody_waited_begins_idleness_anew() -> None:
    scaler, spare = Scaler(SCALE), Seen(2, 0, 1, [])
    for interrupt in (scaler.busy, lambda: scaler.wanted(50.0, Seen(2, 0, 1, [49.0]))):
        assert set(settled(scaler, spare, 50.0)) == {2}
        interrupt()
        assert scaler.wanted(61.0, spare) == 2
        scaler.busy()


def test_a_load_between_growing_and_shrinking_changes_nothing() -> None:
    scaler = Scaler(SCALE)
    for second in range(0, 3000, 10):  # every ten seconds both have work for a moment, and nobody waits for five
        assert scaler.wanted(second, Seen(2, 0, 1, [second - 4.0])) == 2
        scaler.busy()
        assert scaler.wanted(second + 5.0, Seen(2, 0, 1, [])) == 2


def test_requests_that_are_refused_for_want_of_replicas_count_as_waiting_for_a_while() -> None:
    scaler, idle = Scaler(SCALE), Seen(1, 0, 0, [])
    scaler.missed(0.0)
    assert list(settled(scaler, idle, 5.0)) == [1, 1, 1, 1, 1, 2]
    assert scaler.wanted(11.0, idle) == 1


def test_where_a_replica_could_not_be_started_none_is_added_for_a_while() -> None:
    scaler, seen = Scaler(SCALE), Seen(1, 0, 0, [0.0])
    scaler.failed(10.0)
    assert scaler.wanted(10.0 + HOPELESS + 4.0, seen) == 1
    assert scaler.wanted(10.0 + HOPELESS + 5.0, seen) == 2


def test_one_that_is_still_coming_when_nobody_waits_any_more_is_given_up() -> None:
    assert list(settled(Scaler(SCALE), Seen(2, 1, 1, []), 60.0))[-1] == 1


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"least": 0}, "--replicas 0 is not allowed; use at least 1"),
        ({"least": 3, "most": 2}, "--max-replicas 2 is fewer than the 3 of --replicas; use 3 or more"),
        ({"grow_after": 0.0}, "--grow-after 0 is not allowed"),
        ({"shrink_after": float("inf")}, "--shrink-after inf is not allowed"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(numbers: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Scale(**numbers)  # type: ignore[arg-type]


@dataclass
class Place:
    """A place with work that has begun, and work that waits."""

    begun: int
    waiting: list[str] = field(default_factory=list)
    open: bool = True
    holder: str | None = None

    @property
    def load(self) -> int:
        return self.begun + len(self.waiting)


def moved(*places: Place) -> list[str]:
    return to_move(places, lambda place: place.waiting)


def test_what_came_last_goes_from_the_full_to_the_empty_and_what_has_begun_stays() -> None:
    assert moved(Place(1, ["a", "b", "c"]), Place(0)) == ["b", "c"]
    assert moved(Place(4), Place(0)) == []
    assert moved(Place(3, ["a"]), Place(0)) == ["a"]


def test_nothing_moves_where_nobody_is_idle_or_the_idle_cannot_take_it() -> None:
    assert moved(Place(1, ["a", "b", "c"]), Place(1)) == []
    assert moved(Place(1, ["a", "b", "c"]), Place(0, open=False)) == []
    assert moved(Place(1, ["a", "b", "c"]), Place(0, holder="alone")) == []
    assert moved(Place(1), Place(0)) == []
