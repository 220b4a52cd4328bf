"""In a run of several processes, tests that take long come first: at the end none waits for the last one of another.

Each process of pytest-xdist begins with an equal part of the tests, in order, and takes over from others what they have
not begun. Slow tests that follow each other stay together: they may share what takes long to start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

T = TypeVar("T")


def slow_first(items: Sequence[T], is_slow: Callable[[T], bool], processes: int) -> list[T]:
    """`items` so that the part of each of so many processes begins with its share of the slow ones."""
    slow, rest, found = (
        [each for each in items if is_slow(each)],
        [each for each in items if not is_slow(each)],
        list[T](),
    )
    for number in range(processes):
        begun = slow[len(slow) * number // processes : len(slow) * (number + 1) // processes]
        room = len(items) * (number + 1) // processes - len(found) - len(begun)
        found += [*begun, *rest[:room]]
        del rest[:room]
    return found


def _takes_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("slow", "costly"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if given := getattr(config, "workerinput", None):
        items[:] = slow_first(items, _takes_long, given["workercount"])
