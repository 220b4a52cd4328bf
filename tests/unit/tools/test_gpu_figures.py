"""What `make gpu` measures, at tiny size on whatever is here: the same code, from the engines to the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.costly
def test_the_figures_of_a_gpu_are_measured_at_tiny_size_without_one(tmp_path: Path) -> None:
    figures, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--json", str(figures)]
    asked = ["--tiny", "--model", "z_image", "--requests", "1", "2", "--mode", "eager", "plain"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for more in (asked, ["--page", str(page)]):
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(figures.read_text())
    cases = {(row["engine"], row["mode"], row["case"]) for row in measured["rows"]}
    assert {("omnimuse", "eager", "32 x 2"), ("diffusers", "eager", "32 x 1 guided")} <= cases
    assert all(row["step_ms"] > 0 for row in measured["rows"] if "step_ms" in row)
    assert "| z_image | 32 x 1 |" in page.read_text()
    assert measured["device"] == "cpu", "the page must say that this was no GPU"
