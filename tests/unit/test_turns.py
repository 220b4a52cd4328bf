"""Tests that take turns: each has exactly one, and who names tests gets all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import turns
from tests.turns import TURNS, has_its_turn, turn_of

SETTINGS = """
[tool.pytest.ini_options]
testpaths = ["some"]
markers = ["crossed: takes turns"]
"""
TESTS = """
import pytest

def test_always(): pass

@pytest.mark.crossed
@pytest.mark.parametrize("x", range(30))
def test_crossed(x): pass
"""


def test_each_test_has_exactly_one_turn_and_commits_have_different_ones() -> None:
    names = [f"tests/some.py::test[{number}]" for number in range(100)]
    assert all(sum(has_its_turn(name, turn) for turn in range(TURNS)) == 1 for name in names)
    assert {turn_of(f"{commit:040x}") for commit in range(50)} == set(range(TURNS))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "test_some.py").write_text(TESTS)
    return tmp_path


def collected(project: Path, *args: str) -> int:
    command = [sys.executable, "-m", "pytest", "-p", "tests.turns", "--collect-only", "-q", "-p", "no:cacheprovider"]
    home = str(Path(turns.__file__).parents[1])
    found = subprocess.run(
        [*command, *args], cwd=project, env={**os.environ, "PYTHONPATH": home}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    return found.stdout.count("::test_")


def test_a_run_of_everything_takes_a_part_of_them_and_any_other_takes_all(project: Path) -> None:
    assert 1 < collected(project) < 31
    assert collected(project, "--all") == collected(project, "some/test_some.py") == 31
