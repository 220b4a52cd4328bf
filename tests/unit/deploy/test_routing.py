"""Which replica is next: the least loaded of those that are looked at, and one that is open if there is any."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from omnimuse.deploy.routing import ASKED, least_loaded


@dataclass(frozen=True)
class Place:
    load: int
    open: bool = True
    holder: str | None = None


def test_the_least_loaded_open_place_that_is_kept_for_nobody_is_next() -> None:
    places = [Place(0, open=False), Place(0, holder="somebody"), Place(3), Place(1), Place(2)]
    assert least_loaded(places, Random(1)) is places[3]
    assert least_loaded(places[:2], Random(1)) is None


def test_of_very_many_one_without_work_is_found_although_few_are_looked_at() -> None:
    places = [Place(number % 3) for number in range(100 * ASKED)]
    draw = Random(1)
    assert all(least_loaded(places, draw).load == 0 for _ in range(100))  # type: ignore[union-attr]


def test_the_only_open_one_of_very_many_is_found() -> None:
    places = [Place(0, open=False)] * (100 * ASKED) + [Place(9)]
    assert least_loaded(places, Random(1)) is places[-1]
