"""What measures packed weights runs, at tiny size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("more", "columns", "rows"),
    [
        ([], ["int8", "int4"], ["1", "2"]),
        (
            ["--dtype", "float32", "auto", "--prompts", "5", "--experts", "4"],
            ["int8, float32", "int4, float32", "floats, auto", "int8, auto", "int4, auto"],
            ["1", "2", "prompt of 5"],
        ),
    ],
    ids=["one format", "two formats, prompts and experts"],
)
def test_what_packed_weights_cost_is_measured_at_tiny_size(
    more: list[str], columns: list[str], rows: list[str]
) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.packed", "--width", "64", "--layers", "1"]
    command += ["--tokens", "2", "--rounds", "1", "--batches", "1", "2", "--schemes", "int8", "int4", *more]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "%|" not in done.stderr, "no bar of a library runs through the table"
    head, _, *lines = done.stdout.splitlines()
    assert head == f"| at a time | tokens a second | {' | '.join(columns)} |"
    figures = [line.strip("| ").split(" | ") for line in lines]
    assert [told for told, *_ in figures] == rows
    assert all(len(row) == 1 + len(columns) and min(map(float, row)) > 0 for _, *row in figures)
