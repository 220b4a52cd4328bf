"""The page of quality: every choice is measured, no default is worse than exact drawing, and the page says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks.frontier import RADIUS, Panel, Point, frontier, labels, placed, write_svg
from benchmarks.quality import (
    BEGIN,
    ENCODED,
    END,
    EXACT,
    FILED,
    FORECASTS,
    SUBJECTS,
    TILES,
    Choice,
    Figures,
    Subject,
    choices,
    drawn,
    measure,
    missing,
    panels,
    processor,
    read_figures,
    subjects,
    suited,
    tables,
)
from omnimuse.core.caches import PRESETS, Fits
from omnimuse.core.config import QUANT, Config, ModelConfig
from omnimuse.core.params import DiffusionParams
from omnimuse.loader.resolve import resolve
from omnimuse.worker.place import choose_dtype
from tests.checkpoints.packed import FILES
from tools.train_shapes.data import SIZE
from tools.train_shapes.grade import draw_tasks
from tools.train_shapes.lora import shipped

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
FIGURES = read_figures(DOCS / "quality.json")
WITHIN = 1.0
"""Points of a hundred that a default, or a preset, may lie below exact drawing."""


def default(units: bool) -> Choice:
    """What an engine does that nobody has told anything, on a processor that has `units` for bfloat16, or has none."""
    config = Config(ModelConfig("omnimuse/shapes", device="cpu"))
    schemes = config.quantize.schemes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": units})
        patch.delenv("OMNIMUSE_DTYPE", raising=False)
        dtype, _ = choose_dtype(config.model, torch.device("cpu"))
    return Choice(
        "defaults",
        quantize=",".join(f"{name}={scheme}" if name else scheme for name, scheme in schemes.items()),
        compiled=config.compile.mode != "none",
        dtype=str(dtype).removeprefix("torch."),
        cache=str(config.cache),
    )


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("units", [False, True], ids=["float32", "bfloat16"])
def test_no_default_approximation_lies_more_than_a_point_below_exact_drawing(subject: str, units: bool) -> None:
    [name] = [name for name, choice in choices().items() if replace(choice, group="defaults") == default(units)]
    rows = [FIGURES[subject][each] for each in (name, EXACT)]
    assert all(each.source for each in rows), "what a default rests on is of known weights"
    score, exact = (each.score for each in rows)
    assert score >= exact - WITHIN, f"{name} is a default and {exact - score:.1f} points below exact drawing"


def test_what_is_taken_unasked_where_memory_is_short_is_graded_and_the_page_says_what_it_costs() -> None:
    """Tiles of half a side, and of half of that, down to these (`tests/unit/worker/test_room.py`)."""
    exactly = few("demo").engine(choices()[EXACT])
    sides = [tiling.pixels for tiling in exactly.runner.pipeline.ctx.tilings if tiling.pixels < SIZE]
    exactly.close()
    assert sides == [choices()[TILES].tile]
    found, exact = FIGURES["demo"][TILES], FIGURES["demo"][EXACT]
    assert found.source and exact.source
    assert found.score >= exact.score - WITHIN, f"tiles are {exact.score - found.score:.1f} points below exact drawing"
    assert f"and {TILES}, where" in " ".join((DOCS / "quality.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_loses_more_than_a_point(preset: str, subject: str) -> None:
    score, exact = (FIGURES[subject][name].score for name in (f"`{preset}`", EXACT))
    assert score >= exact - WITHIN, f"{preset} is {exact - score:.1f} points below exact drawing"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_presets_that_skip_more_are_faster(subject: str) -> None:
    speeds = [FIGURES[subject][f"`{preset}`"].speed for preset in PRESETS]
    assert speeds == sorted(speeds)
    assert speeds[-1] > 1.1 * speeds[0], "the fastest is worth a choice"


def test_every_preset_is_graded_and_weights_of_8_and_4_bits() -> None:
    graded = [choices()[name] for name in FIGURES["demo"]]
    assert {*PRESETS, *(f"{kind},threshold=0.24" for kind in FORECASTS)} <= {choice.cache for choice in graded}
    assert {"", "int8", "int8-dynamic", "int4", "fp8"} <= {choice.quantize for choice in graded}


def test_what_is_not_measured_is_named_on_the_page() -> None:
    lines = (DOCS / "quality.md").read_text(encoding="utf-8").splitlines()
    for subject, found in FIGURES.items():
        left = [line for line in lines if line.startswith(f"Not measured yet on the {SUBJECTS[subject]}: ")]
        told = left[0].removesuffix(".").partition(": ")[2].split("; ") if left else []
        assert {*found, *told} == set(suited(choices(), subject))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_is_on_the_page_was_measured_of_the_weights_adapters_and_caches_of_today(subject: str) -> None:
    """Thresholds that were calibrated are found again by calibrating alone: of those rows, that they tell it."""
    assert not [name for name, each in FIGURES[subject].items() if not each.source]
    told = {name: each for name, each in FIGURES[subject].items() if not choices()[name].calibrated}
    assert EXACT in told
    today = subjects(2, 1)[subject]()
    assert {name: today.source(choices()[name]) for name in told} == {name: each.source for name, each in told.items()}


def test_a_table_says_by_which_processor_its_rows_are_and_which_do_not_tell_it() -> None:
    rows = {
        EXACT: Figures(1.0, 1.0, 75.0, 0.0, 4, 1, "1101", "abc off", "one kind"),
        "14 steps": Figures(1.4, 1.0, 75.0, 0.5, 4, 1, "1101", "abc off", "another"),
        "10 steps": Figures(1.9, 1.0, 75.0, 0.5, 4, 1, "1101", "abc off"),
        "`bfloat16`": Figures(1.3, 0.5, 75.0, 0.5, 4, 1, "1101", "abc off", "", "one kind"),
        "7 steps": Figures(2.0, 1.0, 75.0, 0.5, 4, 1, "1101", "abc off", "one kind"),
    }
    page = tables({"demo": rows})
    assert "By one kind: exact; 7 steps." in page and "By another: 14 steps." in page
    assert "By which processor is not known: 10 steps; `bfloat16`." in page
    assert "With speed and memory of an earlier run, and all else by one kind: `bfloat16`." in page
    assert processor() and "units for bfloat16" in processor()


def few(subject: str, steps: int = 2) -> Subject:
    """Two prompts of it, in few steps."""
    whole = subjects(4 if subject == "film" else 2, 1)[subject]()
    return replace(whole, exact=replace(whole.exact, num_inference_steps=steps))


def test_what_is_only_judged_keeps_its_speed_and_memory() -> None:
    name, before = "`int4`", Figures(7.0, 0.125, 50.0, None, 9, 8, "", "", "another kind")
    wanted = {each: choices()[each] for each in (name, "`fp8`")}
    [(told, found)] = measure(few("demo"), wanted, None, {name: before})  # who has no speed yet is left out
    assert told == name
    kept = (found.speed, found.memory, found.timed, found.processor)
    assert kept == (7.0, 0.125, 8, "another kind")
    assert (found.count, len(found.right), found.judged) == (2, 2, processor())
    assert found.pixels and found.score == 50.0 * found.right.count("1")
    assert found.source == few("demo").source(choices()[name])


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_packed_files_are_made_of_the_models_own_and_draw_near_it(subject: str) -> None:
    """Nearer than any other picture of the model is, and not the same."""
    small = few(subject, steps=4)
    every = {name: choices()[name] for name in (EXACT, *FILED)}
    made = dict[str, np.ndarray]()
    for name, choice in every.items():
        engine = small.engine(choice)
        made[name] = np.stack(drawn(engine, small, small.exact)).astype(np.float32)
        engine.close()
    exact = made.pop(EXACT)
    apart = {name: float(np.abs(each - exact).mean()) for name, each in made.items()}
    assert len({subjects(2, 1)[subject]().source(choice) for choice in every.values()}) == len(every)
    assert min(apart.values()) > 0 and max(apart.values()) < np.abs(exact[0] - exact[1]).mean() / 4, apart


def test_what_wears_adapters_is_plotted_by_itself() -> None:
    names = [EXACT, "14 steps", "`night`, rank 4", "`night` and `int8`"]
    shown = [panel.points for panel in panels({"demo": {name: Figures(1.0, 1.0, 75.0, 0.5, 4, 1) for name in names}})]
    assert [[point.name for point in points] for points in shown[:2]] == [
        [EXACT, "14 steps"],
        ["night, rank 4", "night and int8"],
    ]


def test_there_are_choices_of_every_kind() -> None:
    every = choices().values()
    assert {*PRESETS, *FORECASTS, "auto"} <= {choice.cache for choice in every}
    assert {choice.quantize for choice in every} == {"", *QUANT, ENCODED}
    assert {choice.files for choice in every} == {"", *FILES}
    assert {"steps", "adapters", "compiled", "pairs", "tiles"} <= {choice.group for choice in every}


def test_the_page_and_its_picture_are_made_from_the_figures() -> None:
    page = (DOCS / "quality.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == tables(FIGURES)
    assert "(images/quality.svg)" in page


def test_the_picture_on_the_page_is_of_these_figures(tmp_path: Path) -> None:
    write_svg(tmp_path / "again.svg", panels(FIGURES))
    assert (tmp_path / "again.svg").read_bytes() == (DOCS / "images" / "quality.svg").read_bytes()


def test_the_frontier_has_what_no_other_choice_beats() -> None:
    slow, even, worse, fast = (
        Point("slow", "exact", 1.0, 90.0),
        Point("even", "steps", 1.5, 90.0),
        Point("worse", "caches", 1.4, 80.0),
        Point("fast", "steps", 2.0, 70.0),
    )
    assert frontier([slow, even, worse, fast]) == [even, fast]


def test_a_picture_names_every_point_and_can_be_read(tmp_path: Path) -> None:
    points = [Point("a < b", "exact", 1.0, 90.0), Point("other", "pairs", 2.3, 41.0)]
    write_svg(tmp_path / "one.svg", [Panel("title", "score", points)])
    told = {each.text for each in ElementTree.parse(tmp_path / "one.svg").iter() if each.text}
    assert {"a < b", "other", "title", "score"} <= told


def test_who_is_exact_or_on_the_frontier_is_named_and_a_key_tells_the_numbers_of_the_others(tmp_path: Path) -> None:
    exact, fast = Point("exact", "exact", 1.0, 90.0), Point("7 steps", "steps", 2.0, 95.0)
    slow, wrong = Point("fp8", "weights", 0.9, 89.0), Point("dbcache", "caches", 1.5, 40.0)
    points = [slow, exact, wrong, fast]
    assert labels(points) == {slow: "1", exact: "exact", wrong: "2", fast: "7 steps"}
    write_svg(tmp_path / "one.svg", [Panel("title", "score", points)])
    texts = [
        "".join(each.itertext()) for each in ElementTree.parse(tmp_path / "one.svg").iter() if each.tag.endswith("text")
    ]
    assert [texts.count(told) for told in ("exact", "7 steps", "1 fp8", "2 dbcache")] == [1] * 4
    assert not {"fp8", "dbcache"} & {*texts} and {"1", "2"} <= {*texts}


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("across", [0.0, 3.0, 11.0, 40.0])
def test_no_label_lies_on_another_or_on_a_point_however_crowded_they_are(across: float) -> None:
    names = [f"choice number {number}" for number in range(20)]
    spots = [(300.0 + across * (number % 5), 100.0 + across * (number // 5)) for number in range(20)]
    boxes = placed(names, spots)
    assert not [pair for pair in combinations(boxes, 2) if pair[0].over(pair[1])]
    assert min(box.distance(spot) for box in boxes for spot in spots) > RADIUS
    assert [placed(names[:1], [spot])[0].leader(spot) for spot in spots] == [None] * 20  # alone, it is beside its point


def test_what_was_measured_of_other_prompts_than_exact_drawing_is_not_on_the_page(tmp_path: Path) -> None:
    counts = {EXACT: 10, "7 steps": 20, "10 steps": 10}
    demo = {name: asdict(Figures(1.0, 1.0, 80.0, 0.0, count, 1)) for name, count in counts.items()}
    (tmp_path / "figures.json").write_text(json.dumps({"demo": demo}), encoding="utf-8")
    found = read_figures(tmp_path / "figures.json")
    assert list(found["demo"]) == [EXACT, "10 steps"]
    assert "20 steps, 10 prompts" in tables(found)
    assert "not measured yet" in tables(found).lower()
    assert [point.name for point in panels(found)[0].points] == [EXACT, "10 steps"]
    del demo[EXACT]
    (tmp_path / "figures.json").write_text(json.dumps({"demo": demo}), encoding="utf-8")
    assert read_figures(tmp_path / "figures.json")["demo"] == {}


def test_a_row_tells_how_many_prompts_it_won_and_lost_against_exact_drawing() -> None:
    verdicts = {EXACT: "1101", "14 steps": "0111", "10 steps": "0001", "7 steps": ""}
    rows = {name: Figures(1.0, 1.0, 75.0, 0.5, 4, 1, right) for name, right in verdicts.items()}
    assert [each.against(rows[EXACT]) for each in rows.values()] == ["0, 0", "1, 1", "0, 2", ""]
    style, pair = "`night`, rank 4", "`night` and `int8`"  # judged by scenes that exact drawing was not asked for
    worn = {style: Figures(1.0, 1.0, 75.0, 0.0, 4, 1, "1101"), pair: Figures(1.0, 1.0, 75.0, None, 4, 1, "0111")}
    page = tables({"demo": rows | worn})
    assert (
        "| 14 steps | 1.00 | 1.00 | 75.0% | 1, 1 | 0.5 |" in page
        and "| 7 steps | 1.00 | 1.00 | 75.0% |  | 0.5 |" in page
    )
    assert f"| {style} | 1.00 | 1.00 | 75.0% | 0, 0 | 0.0 |" in page
    assert f"| {pair} | 1.00 | 1.00 | 75.0% | 1, 1 |  |" in page


def test_what_was_measured_of_other_weights_adapters_or_of_another_cache_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(resolve("omnimuse/shapes").path, tmp_path / "model")
    subject = Subject(str(folder), DiffusionParams(20), draw_tasks(4), 1, ())
    names = [EXACT, "`careful`", "`night` and `int8`", "`auto`, calibrated"]
    wanted, rows = {name: choices()[name] for name in names}, dict[str, dict[str, object]]()

    def measured() -> list[str]:
        """What is missing, of which there are figures from then on."""
        found = missing(wanted, rows, subject)
        rows.update({name: {"count": len(subject.tasks), "source": subject.source(it)} for name, it in found.items()})
        return list(found)

    def calibrated(choice: str) -> None:
        subject.__dict__["fits"] = Fits(auto=choice)

    calibrated("teacache,threshold=0.3,in_a_row=2")
    assert [measured(), measured()] == [names, []]
    assert rows["`careful`"]["source"].endswith("teacache,threshold=0.12,warm_up=1,in_a_row=1")
    calibrated("teacache,threshold=0.3,in_a_row=1")
    assert [measured(), measured()] == [["`auto`, calibrated"], []]
    monkeypatch.setattr("omnimuse.core.caches.PRESETS", {**PRESETS, "careful": PRESETS["fast"]})
    assert [measured(), measured()] == [["`careful`"], []]
    monkeypatch.setattr("benchmarks.quality.shipped", lambda style: shipped("hearts"))
    assert [measured(), measured()] == [["`night` and `int8`"], []]
    del rows[EXACT]["source"]  # as earlier versions kept them
    assert [measured(), measured()] == [[EXACT], []]
    subject = replace(subject, tasks=draw_tasks(6))
    calibrated("teacache,threshold=0.3,in_a_row=1")
    assert [measured(), measured()] == [names, []]
    (folder / "loras" / "night.safetensors").unlink()
    assert measured() == []
    with (folder / "transformer" / "diffusion_pytorch_model.safetensors").open("ab") as weights:
        weights.write(b"more")
    assert [measured(), measured()] == [names, []]


def test_an_axis_of_rare_mistakes_gives_them_more_room(tmp_path: Path) -> None:
    scores = {EXACT: 95.5, "14 steps": 85.0, "10 steps": 95.0, "7 steps": 100.0}
    rows = {name: Figures(1.0, 1.0, score, 0.0, 10, 1) for name, score in scores.items()}
    panel, *others = panels({"demo": rows, "film": {}})
    assert len(others) == 3 and not any(other.points for other in others)
    few, many, other, none = (panel.height(point.score) for point in panel.points)
    assert none > few > other > many
    assert few - other > 10 * (panel.height(50.0) - panel.height(49.5)) / 2
    write_svg(tmp_path / "one.svg", [panel])
    told = [each.text for each in ElementTree.parse(tmp_path / "one.svg").iter() if each.text]
    assert [text for text in told if text in ("60", "80", "90", "95", "98", "100")] == ["80", "90", "95", "98", "100"]
