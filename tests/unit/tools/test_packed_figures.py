"""What measures packed weights runs, at tiny size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.costly
def test_what_packed_weights_cost_is_measured_at_tiny_size() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.packed", "--width", "64", "--layers", "1"]
    command += ["--tokens", "2", "--rounds", "1", "--batches", "1", "2", "--schemes", "int8", "int4"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    head, _, *lines = done.stdout.splitlines()
    assert head == "| at a time | tokens a second | int8 | int4 |"
    figures = [[float(cell) for cell in line.strip("| ").split(" | ")] for line in lines]
    assert [count for count, *_ in figures] == [1, 2]
    assert all(len(row) == 4 and min(row) > 0 for row in figures)
