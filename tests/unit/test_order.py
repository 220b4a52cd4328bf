"""The order of tests in a run of several processes."""

from __future__ import annotations

import pytest

from tests.order import slow_first


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_process_begins_with_its_share_of_slow_tests_and_all_keep_their_order(processes: int) -> None:
    items, slow = list(range(24)), [3, 4, 11, 17, 20, 23]
    found = slow_first(items, slow.__contains__, processes)
    assert sorted(found) == items
    assert [each for each in found if each in slow] == slow
    assert [each for each in found if each not in slow] == [each for each in items if each not in slow]
    part, share = len(items) // processes, len(slow) // processes
    for number in range(processes):
        own = found[number * part : (number + 1) * part]
        assert [each in slow for each in own] == [True] * share + [False] * (part - share)
