"""What `make gpu` measures, at tiny size on whatever is here: the same code, from the engines to the page."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path

import pytest

from benchmarks.gpu import NAMED, Budget, Cell, Row, aims, in_order, planned
from benchmarks.steps import Ours

ROOT = Path(__file__).resolve().parents[3]
CELLS = planned(("z_image", "wan"), ("eager", "compiled", "layers"), (512, 1024), (1, 2, 8), 6)


@pytest.mark.costly
def test_the_figures_of_a_gpu_are_measured_at_tiny_size_without_one(tmp_path: Path) -> None:
    figures = tmp_path / "gpu.json"
    figures.write_text(json.dumps({"A GPU": {"torch": "3", "tflops": 1.0, "run": "", "rows": [], "left_out": []}}))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--json", str(figures)]
    modes = ["--mode", "eager", "plain", "layers", "teacache", "fp8"]
    asked = ["--tiny", "--model", "z_image", "--requests", "1", "2", *modes]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for more in (asked, ["--page"]):
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(figures.read_text())["cpu"]
    cases = {(row["engine"], row["mode"], row["case"]) for row in measured["rows"]}
    assert {("omnimuse", "eager", "32 x 2"), ("diffusers", "eager", "32 x 1 guided")} <= cases
    assert {("omnimuse", mode, "32 x 1") for mode in ("plain", "layers", "teacache", "fp8")} <= cases
    assert all(row["step_ms"] > 0 for row in measured["rows"] if "step_ms" in row)
    page = figures.with_suffix(".md").read_text()
    assert "| z_image | 32 x 1 |" in page
    assert "no GPU" in page, "the page must say that this was none"
    assert "## A GPU" in page, "what another device showed stays"


def row_of(cell: Cell, **besides: object) -> Row:
    return dict(zip(NAMED, cell.key, strict=True)) | besides


def test_what_aims_are_judged_by_is_measured_first_and_who_calls_again_goes_on() -> None:
    """A device that takes 20 seconds for each figure, in calls of two minutes."""
    now, rows, calls = [0.0], list[Row](), list[list[Cell]]()
    while len({cell.key for cell in CELLS} - {tuple(row[key] for key in NAMED) for row in rows}):
        budget, done = Budget(120.0, now[0], [], {}, partial(itemgetter(0), now)), list[Cell]()
        for cell in in_order(CELLS, rows):
            if budget.allows(cell.key, 20):
                now[0] += 20
                done.append(cell)
        assert now[0] - budget.began <= 120.0 and len(budget.left_out) == len(CELLS) - len(done)
        assert done, "it goes on"
        rows += [row_of(cell) for cell in done]
        calls.append(done)
    first = [*itertools.chain(*calls)][:8]
    assert all(cell.model == "z_image" and cell.case.side == 1024 and not cell.case.guided for cell in first)
    assert {(cell.kind.name, cell.mode, cell.case.requests) for cell in first} == {
        *itertools.product(("omnimuse", "diffusers"), ("eager", "compiled"), (1, 8))
    }


def test_what_took_long_before_is_not_begun_where_little_time_is_left() -> None:
    key = CELLS[0].key
    assert Budget(50.0, 0.0, [], {}, lambda: 30.0).allows(key, 6)
    assert not Budget(50.0, 0.0, [], {key: 25.0}, lambda: 30.0).allows(key, 6)
    assert not Budget(50.0, 0.0, [], {(*key[:3], "another"): 25.0}, lambda: 30.0).allows(key, 6)


def test_every_aim_is_answered_by_yes_or_no_once_it_is_measured() -> None:
    assert [reached for _, _, reached in aims([])] == ["not measured"] * 5
    cells = [cell for cell in CELLS if cell.model == "z_image" and cell.mode in ("eager", "compiled")]
    ours = {"step_ms": 100.0, "roof_share": 0.92, "device_busy": 0.97}
    rows = [row_of(cell, **(ours if cell.kind is Ours else {"step_ms": 120.0})) for cell in cells]
    start = {"model": "z_image", "mode": "compiled"}
    rows += [start | {"engine": "omnimuse", "case": "start warmed", "first_s": 20.0}]
    rows += [start | {"engine": "diffusers", "case": "start", "first_s": 50.0}]
    assert [reached for _, _, reached in aims(rows)] == ["yes", "yes", "no", "no", "yes"]
