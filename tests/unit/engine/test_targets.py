"""Which deadlines can be kept, judged by the speed of ticks that were timed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import combinations

import pytest

from omnimuse.engine.targets import KEEP, MARGIN, STALL, Targets


@dataclass(frozen=True, eq=False)
class Wish:
    deadline: float
    left: int

    @property
    def steps(self) -> float:
        return float(self.left)


def timed(seconds_per_token: float = 1.0) -> Targets:
    targets = Targets()
    targets.begin(0.0, 10)
    targets.begin(10 * seconds_per_token, 0)
    return targets


def given_up(wishes: list[Wish], now: float = 0.0) -> list[int]:
    hopeless = timed().hopeless(wishes, now)
    return [number for number, wish in enumerate(wishes) if id(wish) in hopeless]


def test_before_a_tick_was_timed_everything_is_possible() -> None:
    wish = Wish(-1.0, 100)
    assert Targets().hopeless([wish], 0.0) == set() and Targets().allow([wish], (1, 1), 0.0)


def test_time_in_which_there_was_nothing_to_do_is_no_measure() -> None:
    targets = timed()
    targets.begin(20.0, 5)
    targets.rest()
    targets.begin(1000.0, 5)
    assert targets.pace == 1.0


def test_a_stall_counts_for_no_more_than_some_ticks() -> None:
    targets = timed()
    targets.begin(10.0, 1)
    targets.begin(10_000.0, 1)
    assert targets.pace == pytest.approx((KEEP * 10 + STALL * 1) / (KEEP * 10 + 1))


def test_of_a_speed_that_has_changed_half_is_known_after_fourteen_ticks() -> None:
    targets, now = Targets(), 100.0
    for seconds, ticks in ((1.0, 100), (3.0, 15)):
        for _ in range(ticks):
            targets.begin(now, 10)
            now += 10 * seconds
    assert targets.pace == pytest.approx(2.0, rel=0.02)


def test_what_a_tick_has_more_counts_with_it() -> None:
    targets = Targets()
    targets.begin(5.0, 2)
    targets.more(6)
    targets.begin(21.0, 0)
    assert targets.pace == 2.0


def test_the_longest_of_those_that_cannot_all_be_in_time_is_given_up() -> None:
    assert given_up([Wish(12.0, 10), Wish(13.0, 3), Wish(14.0, 2)]) == [0]
    assert given_up([Wish(15.0, 10), Wish(15.0, 3), Wish(15.0, 2)]) == []


def test_no_choice_would_be_late_with_fewer() -> None:
    draw = random.Random(7)
    for _ in range(200):
        wishes = [Wish(float(draw.randint(1, 30)), draw.randint(1, 12)) for _ in range(6)]
        assert len(given_up(wishes)) == fewest(wishes)


def fewest(wishes: list[Wish]) -> int:
    """How many are late at the least, by trying every choice."""
    for late in range(len(wishes) + 1):
        for kept in combinations(sorted(wishes, key=lambda wish: wish.deadline), len(wishes) - late):
            ends = [sum(each.left for each in kept[: number + 1]) for number in range(len(kept))]
            if all(end <= wish.deadline for end, wish in zip(ends, kept, strict=True)):
                return late
    raise AssertionError("nothing is always possible")


def test_company_is_welcome_while_it_makes_nobody_late_who_would_be_in_time_alone() -> None:
    targets, now, half_a_step = timed(0.5), 100.0, MARGIN * 0.5 * 10
    alone, together = now + 2 * half_a_step, now + 5 * half_a_step
    for deadline, welcome in ((alone - 1, True), (alone, False), (together - 1, False), (together, True)):
        assert targets.allow([Wish(deadline, 10)], (2, 3), now) == welcome
