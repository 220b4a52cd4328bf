"""What `make gpu` measures, at tiny size on whatever is here: the same code, from the engines to the page."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from functools import partial
from operator import itemgetter
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import FIRST, NAMED, PUBLISHED, Budget, Cell, Row, aims, in_order, main, planned
from benchmarks.published import MODELS
from benchmarks.steps import Case, Ours, share

ROOT = Path(__file__).resolve().parents[3]
CELLS = planned(("z_image", "wan"), ("eager", "compiled", "layers"), (512, 1024), (1, 2, 8), 6)


def figures(file: Path, *given: str) -> dict[tuple[str, ...], Row]:
    """What the command measures there on a machine without a GPU, by what tells one row from another."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--json", str(file), *given]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(file.read_text())["cpu"]["rows"]
    assert all(row.get("step_ms", row.get("ms", row.get("first_s"))) > 0 for row in rows)
    return {tuple(row[key] for key in NAMED): row for row in rows}


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_every_network_of_a_gpu_is_measured_at_tiny_size_without_one_and_the_page_says_so(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"A GPU": {"torch": "3", "tflops": 1.0, "run": "", "rows": [], "left_out": []}}))
    found = figures(file, "--requests", "1", "2", "--mode", "eager")
    cases = ("start", "32 x 1", "32 x 1 guided", "32 x 2", "32 x 2 guided", "whole 32 x 1", "decode 32")
    assert {*found} == {*itertools.product(MODELS, ("omnimuse", "diffusers"), ("eager",), cases)}
    page = file.with_suffix(".md").read_text()
    assert all(f"| {model} | {case} |" in page for model in MODELS for case in cases[1:])
    assert "no GPU" in page, "the page must say that this was none"
    assert "## A GPU" in page, "what another device showed stays"
    assert "run: not known" in page and "Left out by the last run: not known." in page, "nobody wrote when that was"
    [here] = re.findall(r"run: (\d{4}-\d\d-\d\d .*), commit ", page)
    assert all(here == row["run"] for row in found.values())


@pytest.mark.costly
def test_every_mode_of_a_gpu_is_measured_at_tiny_size_without_one(tmp_path: Path) -> None:
    modes = ("plain", "layers", "teacache", "fp8")
    found = figures(tmp_path / "gpu.json", "--model", FIRST, "--requests", "1", "--mode", *modes)
    assert {*itertools.product((FIRST,), ("omnimuse",), modes, ("start", "32 x 1"))} <= {*found}


@pytest.mark.costly
@pytest.mark.timeout(600)
def test_what_is_compiled_is_measured_at_tiny_size_from_a_cold_start_and_a_warmed_one(tmp_path: Path) -> None:
    found = figures(tmp_path / "gpu.json", "--model", FIRST, "--requests", "1", "--mode", "compiled")
    steps = {(FIRST, engine, "compiled", "32 x 1") for engine in ("omnimuse", "diffusers")}
    assert steps | {(FIRST, "diffusers", "compiled", "start")} <= {*found}
    cold, warmed = (found[FIRST, "omnimuse", "compiled", case]["first_s"] for case in ("start", "start warmed"))
    assert warmed < cold


def test_figures_of_tiny_networks_are_not_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = PUBLISHED.read_bytes()
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        command(monkeypatch, "--tiny", "--json", "docs/gpu.json")
    assert "docs/gpu.json has what GPUs showed of published sizes" in capsys.readouterr().err
    assert PUBLISHED.read_bytes() == before


def command(monkeypatch: pytest.MonkeyPatch, *given: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *given])
    main()


def test_the_page_is_written_again_of_what_was_kept_on_a_machine_without_a_gpu_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = {"A GPU": {"torch": "3", "tflops": 1.0, "run": "", "rows": [], "left_out": []}}
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(kept))
    command(monkeypatch, "--page", "--json", str(file))
    assert "## A GPU" in file.with_suffix(".md").read_text()
    assert json.loads(file.read_text()) == kept
    monkeypatch.setattr("benchmarks.gpu.PUBLISHED", tmp_path / "published.json")
    file.rename(tmp_path / "published.json")
    command(monkeypatch, "--page")
    assert "## A GPU" in (tmp_path / "published.md").read_text(), "what is published, where nothing was measured here"


@pytest.mark.parametrize("given", [(), ("--tiny",), ("--json", "absent/gpu.json")])
def test_there_is_no_page_of_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, given: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.gpu.PUBLISHED", tmp_path / "published.json")
    with pytest.raises(SystemExit):
        command(monkeypatch, "--page", *given)
    assert ".json has no rows: measure first" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


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


def test_all_that_is_in_flight_is_measured_with_guidance_and_without_and_some_of_it_to_the_end() -> None:
    names = [cell.name for cell in CELLS if cell.key[:3] == ("wan", "omnimuse", "eager")]
    steps = {f"{side} x {count}{guided}" for side in (512, 1024) for count in (1, 2, 8) for guided in ("", " guided")}
    assert {*names} == steps | {f"whole {side} x {count}" for side in (512, 1024) for count in (1, 8)} | {"decode 1024"}
    assert len(names) == len({*names})


def test_the_share_in_which_a_device_computes_counts_what_overlaps_once() -> None:
    assert share([(10, 20), (15, 30), (40, 50), (42, 44)]) == pytest.approx(30 / 40)
    assert share([(3, 4)]) == 1.0


class Log(list[str]):
    """Who is told when what is counted begins and ends."""

    def start(self) -> None:
        self.append("start")

    def stop(self) -> None:
        self.append("stop")


@pytest.mark.slow
def test_who_watches_steps_sees_those_that_are_counted_alone(tmp_path: Path) -> None:
    model, log = MODELS[FIRST], Log()
    engine = Ours(model, model.build(tmp_path / FIRST), torch.device("cpu"), "eager")
    engine.engine.runner.pipeline.ctx.network("transformer").register_forward_pre_hook(
        lambda *given: log.append("step")
    )
    try:
        engine.steps(Case(32, 1, False, 5), log)
        result = engine.whole(Case(32, 2, False, 2))
    finally:
        engine.close()
    assert log[:7] == ["step", "step", "start", "step", "step", "step", "stop"]
    assert len(log) > 7 and result > 0


def test_every_aim_is_answered_by_yes_or_no_once_it_is_measured() -> None:
    assert [reached for _, _, reached in aims([])] == ["not measured"] * 5
    cells = [cell for cell in CELLS if cell.model == "z_image" and cell.mode in ("eager", "compiled")]
    ours = {"step_ms": 100.0, "roof_share": 0.92, "device_busy": 0.97}
    rows = [row_of(cell, **(ours if cell.kind is Ours else {"step_ms": 120.0})) for cell in cells]
    start = {"model": "z_image", "mode": "compiled"}
    rows += [start | {"engine": "omnimuse", "case": "start warmed", "first_s": 20.0}]
    rows += [start | {"engine": "diffusers", "case": "start", "first_s": 50.0}]
    assert [reached for _, _, reached in aims(rows)] == ["yes", "yes", "no", "no", "yes"]
