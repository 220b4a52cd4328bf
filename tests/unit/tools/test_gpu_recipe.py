"""`make gpu` runs a GPU's tests where they are, in time, and says how many have run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tools.test_gpu_wheels import TESTS
from tools.gpu_wheels import ROOT

SHORT = """
import time
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("seconds", [{seconds}])
def test_short(seconds):
    time.sleep(seconds)

@pytest.mark.gpu
def test_compiled():
    raise AssertionError("compiling takes minutes")

def test_of_a_cpu():
    raise AssertionError("no GPU is needed for it")
"""
SETTINGS = '[tool.pytest.ini_options]\nmarkers = ["gpu: needs one"]\naddopts = ["-q", "-p", "no:schemathesis"]\n'


def run_there(folder: Path, waiting: float, seconds: int) -> tuple[int, str]:
    """What `make gpu-tests` returns and says of short tests where those of a GPU are, and of some that wait longer."""
    (folder / "pyproject.toml").write_text(SETTINGS)
    for place in TESTS:
        file = folder / place / "test_short.py" if "." not in place else folder / place
        file.parent.mkdir(parents=True)
        file.write_text(SHORT.format(seconds=", ".join(["0"] * 8 + [str(waiting)])))
    command = ["make", "-f", str(ROOT / "Makefile"), "gpu-tests", f"GPU_PYTHON={sys.executable}"]
    done = subprocess.run([*command, f"GPU_SECONDS={seconds}"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.costly
@pytest.mark.slow
def test_those_that_need_a_gpu_run_but_for_what_is_compiled(tmp_path: Path) -> None:
    code, said = run_there(tmp_path, 0.1, 100)
    assert code == 0, said
    assert re.search(r"^18 passed", said, re.MULTILINE)


@pytest.mark.costly
def test_where_time_is_over_they_end_and_say_how_many_have_run(tmp_path: Path) -> None:
    code, said = run_there(tmp_path, 300, 90)
    assert code != 0
    assert re.search(r"^1[0-6] passed", said, re.MULTILINE), said  # the next of who waits may wait, too


def test_a_python_without_torch_is_refused_in_a_line_that_says_what_to_do(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "gpu", f"GPU_PYTHON={bare}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{bare} has no torch: name a Python that has, GPU_PYTHON=" in done.stdout
