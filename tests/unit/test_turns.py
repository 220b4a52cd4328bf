"""Tests that take turns: a few families' come often, and who names tests gets all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from omnimuse.models import REGISTRY
from tests import turns
from tests.checkpoints.families import FAMILIES
from tests.turns import OFTEN, TURNS, Unit, comes_often, in_turns, on_turn, turn_of

SETTINGS = """
[tool.pytest.ini_options]
testpaths = ["some"]
markers = ["crossed: takes turns", "costly: takes turns", "slow: takes long"]
"""
TESTS = """
import pytest

def test_always(): pass

@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("x", range(60))
def test_in_three(x): pass

@pytest.mark.crossed(turns=3)
@pytest.mark.parametrize("family", ["ZImagePipeline", *map(str, range(60))])
def test_by_family(family): pass

@pytest.mark.crossed(turns=3)
@pytest.mark.parametrize("family", ["ZImagePipeline", *map(str, range(60))])
def test_of_the_same_families(family): pass

@pytest.mark.crossed
@pytest.mark.parametrize("x", range(60))
def test_crossed(x): pass

@pytest.mark.costly("together")
@pytest.mark.parametrize("x", range(60))
def test_together(x): pass

@pytest.mark.costly
@pytest.mark.parametrize("x", range(60))
@pytest.mark.parametrize("family", ["ZImagePipeline"])
def test_costly(family, x): pass

@pytest.mark.crossed
@pytest.mark.parametrize("y", range(60))
@pytest.mark.parametrize("family", ["ZImagePipeline"])
def test_comes_often(family, y): pass

@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize("y", range(60))
@pytest.mark.parametrize("family", ["ZImagePipeline"])
def test_slow(family, y): pass
"""

APART = """
import pytest

@pytest.mark.costly("one")
@pytest.mark.parametrize("x", ["here", pytest.param("there", marks=pytest.mark.costly("another"))])
def test_apart(x): pass
"""


def test_each_test_has_its_turn_as_often_as_any_other_and_commits_have_different_ones() -> None:
    rarely = [Unit("rarely", f"tests/some.py::test[{number:03}]", TURNS) for number in range(100)]
    often = [Unit("often", f"tests/some.py::test[{name}]", len(OFTEN)) for name in OFTEN]
    found = [on_turn([*rarely, *often], turn) for turn in range(TURNS)]
    assert {sum(unit in each for each in found) for unit in rarely} == {1}
    assert {sum(unit in each for each in found) for unit in often} == {TURNS // len(OFTEN)}
    assert [len(each.intersection(often)) for each in found] == [1] * TURNS
    sizes = {len(each.intersection(rarely)) for each in found}
    assert max(sizes) - min(sizes) <= 1, "no turn costs much more than another"
    assert {turn_of(f"{commit:040x}") for commit in range(200)} == set(range(TURNS))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "test_some.py").write_text(TESTS)
    return tmp_path


def test_a_family_of_each_medium_comes_often_and_no_other_is_taken_for_it() -> None:
    names = [family.name for family in FAMILIES]
    assert [name for name in names if comes_often(f"a::b[{name}]")] == [name for name in names if name in OFTEN]
    assert set(OFTEN) <= set(names)
    assert {REGISTRY.spec(family.arch).medium for family in FAMILIES if family.name in OFTEN} == {
        REGISTRY.spec(family.arch).medium for family in FAMILIES
    }


def collected(project: Path, *args: str) -> set[str]:
    """The ids of the tests that would run."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.turns", "--collect-only", "-q", "-p", "no:cacheprovider"]
    home = str(Path(turns.__file__).parents[1])
    alone = {"PYTHONPATH": home, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # libraries' plugins take seconds to import
    found = subprocess.run([*command, *args], cwd=project, env={**os.environ, **alone}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    return set(re.findall(r"::(test_.+)", found.stdout))


def counted(ids: set[str]) -> dict[str, int]:
    """How many of each test there are."""
    return Counter(id_.partition("[")[0] for id_ in ids)


def test_a_run_of_everything_takes_a_part_of_them_and_any_other_takes_all(project: Path) -> None:
    taken = counted(collected(project))
    assert taken["test_always"] == 1
    assert 0 < taken["test_crossed"] < 60 and 0 < taken["test_slow"] < 60
    assert taken["test_together"] in (0, 60) and 0 < taken["test_costly"] < 60
    assert taken["test_comes_often"] == taken["test_in_three"] == 20
    assert taken["test_by_family"] == 21, "one family of each medium is among them always"
    many = ["test_crossed", "test_together", "test_costly", "test_comes_often", "test_slow"]
    everything = {"test_always": 1} | dict.fromkeys([*many, "test_in_three"], 60)
    everything |= dict.fromkeys(["test_by_family", "test_of_the_same_families"], 61)
    assert counted(collected(project, "--all")) == counted(collected(project, "some/test_some.py")) == everything


def test_who_names_a_turn_gets_it_of_named_files_too(project: Path) -> None:
    turns_of_it = [collected(project, "--turn", str(number), "some/test_some.py") for number in (1, 2)]
    assert turns_of_it[0] != turns_of_it[1]
    families = [
        {test.partition("[")[2] for test in turns_of_it[0] if test.startswith(name)} for name in ("test_by", "test_of")
    ]
    assert families[0] == families[1] and "ZImagePipeline]" in families[0]
    for taken in map(counted, turns_of_it):
        assert taken["test_always"] == 1 and 0 < taken["test_crossed"] < 30


def test_of_what_is_done_with_many_one_is_always_among_them_and_the_others_have_turns() -> None:
    found = [(each.id, [mark.kwargs["turns"] for mark in each.marks]) for each in in_turns(["a", "b"], "a", str, 4)]
    assert found == [("a", []), ("b", [4])]
    with pytest.raises(AssertionError, match="c is none of them"):
        in_turns(["a", "b"], "c", str)


def test_a_parameter_that_is_costly_by_itself_has_its_turn_apart_from_the_others_of_its_test(project: Path) -> None:
    (project / "some" / "test_some.py").write_text(APART)
    units = [Unit(f"costly, one in {TURNS}", name, TURNS) for name in ("one", "another")]
    numbers = [turn + 1 for unit in units for turn in range(TURNS) if unit in on_turn(units, turn)]
    assert [collected(project, "--turn", str(number)) for number in numbers] == [
        {"test_apart[here]"},
        {"test_apart[there]"},
    ]
