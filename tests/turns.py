"""Tests that are crossed with every family take turns: of those marked `crossed` a commit runs one in `TURNS`.

Of one family of each medium (`ALWAYS`) it runs them all, but for those that are `slow`, which take turns there, too.
So does what is `costly`: a quarter of a minute and more for one narrow thing. Tests that share what takes long to start
have their turn together: `costly("memory")`. Which turn it is follows from the commit, so that the same commit always
runs the same. Who names files or tests gets all of them, and so does `make test-all`; who names a turn (`--turn 3`,
the third) gets that one's, of files that are named, too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from zlib import crc32

import pytest

TURNS = 12
ALWAYS = ("ZImagePipeline", "WanPipeline-5B", "StableAudioPipeline")
"""Families by the names in the ids of their tests; no other family's name goes on where one of these ends. What writes
text is crossed with nothing.
"""
_KEY = pytest.StashKey[int | None]()


def turn_of(commit: str) -> int:
    """Whose turn it is at a commit, named by its hash."""
    return crc32(commit.encode()) % TURNS


def has_its_turn(name: str, turn: int) -> bool:
    """Whether what has this name, a test its node id, runs when it is that turn."""
    return crc32(name.encode()) % TURNS == turn


def never_waits(test: str) -> bool:
    """Whether a test, named by its node id, is of a family whose tests run at every turn."""
    within = f"-{test.partition('[')[2].removesuffix(']')}-"
    return any(f"-{name}-" in within for name in ALWAYS)


def waits(item: pytest.Item, turn: int) -> bool:
    """Whether a test does not run when it is that turn."""
    costly = item.get_closest_marker("costly")
    takes_turns = costly or item.get_closest_marker("crossed")
    if takes_turns is None or has_its_turn(next(iter(takes_turns.args), item.nodeid), turn):
        return False
    return bool(costly or item.get_closest_marker("slow")) or not never_waits(item.nodeid)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run all tests that take turns, too")
    numbers = range(1, TURNS + 1)
    parser.addoption("--turn", type=int, choices=numbers, metavar="N", help="of those that take turns, run the Nth's")


def pytest_configure(config: pytest.Config) -> None:
    given = getattr(config, "workerinput", {})
    config.stash[_KEY] = given["turn"] if "turn" in given else _turn(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """A process of pytest-xdist does what the first one has decided."""
    node.workerinput["turn"] = node.config.stash[_KEY]  # type: ignore[attr-defined]


def _turn(config: pytest.Config) -> int | None:
    if (number := config.getoption("turn")) is not None:
        return int(number) - 1
    if config.getoption("all") or config.args_source is pytest.Config.ArgsSource.ARGS:
        return None
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return turn_of(found.stdout.strip())


def pytest_report_header(config: pytest.Config) -> str:
    turn = config.stash[_KEY]
    return "" if turn is None else f"turn {turn + 1} of {TURNS} for crossed tests; `make test-all` runs them all"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turn = config.stash[_KEY]
    if turn is None:
        return
    waiting = [item for item in items if waits(item, turn)]
    config.hook.pytest_deselected(items=waiting)
    items[:] = [item for item in items if item not in set(waiting)]
