"""Tests that are crossed with every family take turns: of those marked `crossed` a commit runs one in `TURNS`.

Of one family of each medium (`OFTEN`) it runs a third, so that each feature is tried with one of them at every commit,
but for those that are `slow`. As rarely as these comes what is `costly`: seconds, up to minutes, for one narrow thing.
Tests that share what takes long to start have their turn together: `costly("memory")`; of what a test says and what its
parameter says, the latter counts. What is more than that, but not worth its time at every commit, comes more often:
`costly(turns=3)` at one commit in three, and `crossed(turns=3)` with each family at one in three, the same families in
all such tests, and with those that come `OFTEN` always.

Tests of a kind have their turns one after the other, so that every turn costs about the same. Which turn it is follows
from the commit, so that the same commit always runs the same. Who names files or tests gets all of them, and so does
`make test-all`; who names a turn (`--turn 3`, the third) gets a share as large of files that are named.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import pytest

TURNS = 36
OFTEN = ("ZImagePipeline", "WanPipeline-5B", "StableAudioPipeline")
"""Families by the names in the ids of their tests; no other family's name goes on where one of these ends. What writes
text is crossed with nothing. There are a whole number of turns for each of them.
"""
T = TypeVar("T")
_KEY = pytest.StashKey[int | None]()


@dataclass(frozen=True, order=True)
class Unit:
    """What has its turn together, among others of its kind."""

    kind: str
    name: str
    turns: int


def turn_of(commit: str) -> int:
    """Whose turn it is at a commit, named by its hash."""
    return crc32(commit.encode()) % TURNS


def on_turn(units: Iterable[Unit], turn: int) -> set[Unit]:
    """Those that run when it is that turn: the units of a kind have theirs in the order of their names."""
    kinds = defaultdict[str, set[Unit]](set)
    for unit in units:
        kinds[unit.kind].add(unit)
    return {
        unit
        for kind, found in kinds.items()
        for place, unit in enumerate(sorted(found), crc32(kind.encode()))
        if place % unit.turns == turn % unit.turns
    }


def in_turns(params: Sequence[T], always: str, name: Callable[[T], str], turns: int = 3) -> list[Any]:
    """Parameters for a fixture: what is done with the one called `always` is done at every commit, with each of the
    others at one in so many.
    """
    assert always in map(name, params), f"{always} is none of them"
    return [
        pytest.param(
            each, id=name(each), marks=() if name(each) == always else pytest.mark.costly(name(each), turns=turns)
        )
        for each in params
    ]


def comes_often(test: str) -> bool:
    """Whether a test, named by its node id, is of a family one of whose kin is tried at every turn."""
    within = f"-{test.partition('[')[2].removesuffix(']')}-"
    return any(f"-{name}-" in within for name in OFTEN)


def unit_of(item: pytest.Item) -> Unit | None:
    """With what a test takes turns; None if it runs always."""
    own = [mark for mark in item.own_markers if mark.name == "costly"]  # those of its parameter are behind its test's
    if costly := own[-1] if own else item.get_closest_marker("costly"):
        turns = costly.kwargs.get("turns", TURNS)
        return Unit(f"costly, one in {turns}", next(iter(costly.args), item.nodeid), turns)
    if not (crossed := item.get_closest_marker("crossed")):
        return None
    test, _, parameters = item.nodeid.partition("[")
    turns = crossed.kwargs.get("turns", TURNS)
    kind = test if turns == TURNS else "crossed"
    if comes_often(item.nodeid) and not item.get_closest_marker("slow"):
        turns = max(1, turns * len(OFTEN) // TURNS)
    return Unit(f"{kind}, one in {turns}", item.nodeid if kind == test else parameters, turns)


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
    units = {item: unit for item in items if (unit := unit_of(item))}
    running = on_turn(units.values(), turn)
    waiting = {item for item, unit in units.items() if unit not in running}
    config.hook.pytest_deselected(items=[item for item in items if item in waiting])
    items[:] = [item for item in items if item not in waiting]
