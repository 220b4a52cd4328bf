"""What tests have imported is looked at for garbage once in a while, and what no test has any more is gone then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import garbage
from tests.garbage import THAWED

FIRST = """
import gc, weakref, pytest

class Ring:
    def __init__(self): self.itself = self

left = []

@pytest.fixture(scope="module")
def ring():
    made = Ring()
    left.append(weakref.ref(made))
    yield made

def test_that_looks_for_garbage(ring): gc.collect()

def test_that_has_what_was_there_then(ring): assert gc.get_freeze_count() > 1000
"""
THEN = f"""
import gc, pytest
from test_first import left

@pytest.mark.parametrize("number", range({THAWED}))
def test_that_looks_for_garbage(number): gc.collect()

def test_that_nothing_is_left(): assert left[0]() is None
"""


def test_what_was_there_stays_for_a_while_and_no_longer(tmp_path: Path) -> None:
    for name, text in (("test_first", FIRST), ("test_then", THEN)):
        (tmp_path / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.garbage", "-p", "no:cacheprovider", "-q"]
    home = str(Path(garbage.__file__).parents[1])
    alone = {"PYTHONPATH": home, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # libraries' plugins take seconds to import
    found = subprocess.run(command, cwd=tmp_path, env={**os.environ, **alone}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
