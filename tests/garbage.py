"""Garbage is looked for among what tests have made: all that they have imported would take a quarter of a second."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

_FROZEN = pytest.StashKey[int]()
THAWED = 25  # times after which all is looked at


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported is garbage: nobody need look for any meanwhile."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What is there when tests begin stays: a collection of garbage, half a second else, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What is there after a test in which all was looked at for garbage stays, too: what it has imported, mostly. A
    thousand tests later that is so much that another look at it takes a quarter of a second. Some of it is an engine of
    several tests, and is garbage later on: every so often all is looked at.
    """
    before = _full_collections()
    result = yield
    if _full_collections() != before:
        times = item.session.stash.get(_FROZEN, 0) + 1
        item.session.stash[_FROZEN] = times
        if times % THAWED == 0:
            gc.unfreeze()
        gc.collect()
        gc.freeze()
    return result


def _full_collections() -> int:
    return int(gc.get_stats()[-1]["collections"])


def pytest_sessionfinish() -> None:
    """At the end everything may go; libraries complain of what does not."""
    gc.unfreeze()
