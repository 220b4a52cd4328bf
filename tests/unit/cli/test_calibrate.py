"""The real command measures a tiny random checkpoint, and what it finds is what `--cache auto` does."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image, ImageChops

from omnimuse.cache.observe import Seen
from omnimuse.cli import main
from omnimuse.cli.calibrate import asks_of, one_place, text
from omnimuse.cli.job import Wanted
from omnimuse.core.caches import PRESETS, Fits, TeaFit, cache_named, completed
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Door
from omnimuse.engine.calibrate import Calibration, Trial, best, candidates, suited
from omnimuse.loader.fits import read_fits
from tests.checkpoints.wishes import photo
from tests.fakes import SPEC


@pytest.mark.costly(turns=3)
def test_a_calibrated_model_has_an_automatic_choice_and_draws_by_it(
    z_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(z_image_folder, model)
    small = ["--size", "32x32", "--steps", "6", "--dtype", "float32"]
    draw = ["generate", "a red circle", "-m", str(model), "--seed", "7", "--quiet", *small]
    for command in (draw, ["explain", str(model)]):
        assert main([*command, "--cache", "auto", *(["-o", str(tmp_path / "no.png")] if command is draw else [])]) == 2
        assert "omnimuse calibrate" in capsys.readouterr().err
    (model / "cache.json").write_text("{")  # which is no reason not to measure again
    measure = ["calibrate", str(model), "a circle", "a star", *small, "--difference", "0.9", "--json"]
    assert main([*measure, "-o", str(model / "cache.json"), "--overwrite"]) == 0
    told, fits = json.loads(capsys.readouterr().out), read_fits(model / "cache.json")
    assert told["auto"] == fits.auto != "none"
    assert told["thresholds"] == {"teacache": fits.tea.threshold, "dbcache": fits.dbcache, "magcache": fits.magcache}
    assert len(fits.ratios) == 6
    assert [trial["choice"] for trial in told["trials"]][-len(PRESETS) :] == list(PRESETS)
    [taken] = [trial for trial in told["trials"] if trial["choice"] == fits.auto]
    assert taken["work"] == min(trial["work"] for trial in told["trials"] if trial["difference"] <= 0.9)
    pictures = []
    for name in ("auto", fits.auto, "none", "magcache,threshold=0.5"):
        assert main([*draw, "--cache", name, "-o", str(tmp_path / f"{len(pictures)}.png")]) == 0
        with Image.open(tmp_path / f"{len(pictures)}.png") as picture:
            pictures.append(picture.copy())
    assert ImageChops.difference(pictures[0], pictures[1]).getbbox() is None
    assert ImageChops.difference(pictures[0], pictures[2]).getbbox() is not None


def test_a_file_that_is_there_is_not_written_over(
    z_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text("mine")
    assert main(["calibrate", str(z_image_folder), "-o", str(tmp_path / "mine.json")]) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "mine.json").read_text() == "mine"


def test_what_was_found_is_told_where_the_disk_does_not_keep_it(
    z_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "found.json"))
    monkeypatch.setattr("omnimuse.loader.fits.write_fits", Mock(side_effect=full))
    small = ["--size", "32x32", "--steps", "2", "--dtype", "float32"]
    assert main(["calibrate", str(z_image_folder), "a circle", *small, "-o", str(tmp_path / "found.json")]) == 1
    told = capsys.readouterr()
    assert "polynomial" in told.out and told.out.endswith("written to  nowhere\n")
    assert f"No space left on device: {tmp_path / 'found.json'}" in told.err


def test_what_reads_both_streams_is_told_every_trial_once(
    z_image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["calibrate", str(z_image_folder), "a circle", "--size", "32x32", "--steps", "2", "--dtype", "float32"]
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal, open(os.dup(theirs), "w") as other, (tmp_path / "errors").open("w") as errors:
        for name, stream in (("stdout", terminal), ("stderr", other)):
            monkeypatch.setattr(f"sys.{name}", stream)
        assert one_place(terminal, other) and not one_place(terminal, errors)
        assert main([*words, "-o", str(tmp_path / "found.json")]) == 0
    told = os.read(ours, 2**20).decode().splitlines()
    os.close(ours)
    trials = json.loads((tmp_path / "found.json").read_text())["measured"]["trials"]
    for trial in trials:
        assert len([line for line in told if line.split()[:1] == [trial["choice"]]]) == 1
    assert [line.split() for line in told if "blocks run" in line] == [["choice", "blocks", "run", "difference"]]
    assert told.index("") > max(told.index(line) for line in told if trials[-1]["choice"] in line)
    assert any(line.startswith("  polynomial") for line in told)


def test_a_mask_for_another_number_of_steps_is_refused_before_anything_is_drawn(
    z_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "x", "-m", str(z_image_folder), "--steps", "4", "--cache", "dbcache,mask=10101"]
    assert main([*words, "-o", str(tmp_path / "x.png")]) == 2
    assert "is for 5 steps and the network is evaluated 4 times" in (said := capsys.readouterr().err)
    assert "encode" not in said


def test_a_pipeline_of_a_library_is_refused_with_the_caches_that_it_may_have(
    foreign_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["-o", str(tmp_path / "cache.json")]
    assert main(["calibrate", str(foreign_folder("SanaPipeline")), *where]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "its pipeline is that of diffusers, and only families of ours are measured; 'dbcache' needs no" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--difference", "0"], "--difference 0"),
        (["--cache", "fast"], "leave it out"),
        (["--tensor-parallel-size", "2"], "one process"),
        (["--steps", "1"], "at least 2"),
        (["--size", "33x32"], "multiple"),
        ([""], "a prompt is empty"),
        (["--set", "cache=fast"], "--set cache=fast chooses what is to be found out; leave it out"),
        (["--quality", "lovely"], "--quality lovely is not known"),
        (["--frames", "5"], "num_frames means nothing to z_image"),
        (["--image", "none.png"], "there is no picture none.png"),
        (["-n", "0"], "makes no picture"),
        (["-o", "pyproject.toml"], "use one of .json"),
        (["-o", "/proc/x.json"], "choose another place"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    z_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    where = ["-o", str(tmp_path / "cache.json")]
    sizes = [] if "--size" in words else ["--size", "32x32"]
    assert main(["calibrate", str(z_image_folder), *where, *sizes, *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arch", "words", "said"),
    [
        ("FluxFillPipeline", [], "0 pictures were given; flux_fill needs at least 1 (--image)"),
        ("FluxFillPipeline", ["--image", "a.png"], "nothing says which; give a mask or a pad"),
        ("LucyEditPipeline-Dev", [], "0 videos were given; lucy_edit needs at least 1 (--video)"),
        ("WanPipeline-2.1-I2V", ["--seconds", "1000"], "seconds=1000 is too long for this model"),
    ],
)
def test_what_a_model_does_not_draw_is_refused_before_its_weights_are_looked_at(
    tiny: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arch: str,
    words: list[str],
    said: str,
) -> None:
    folder = shutil.copytree(tiny(arch), tmp_path / "model")
    for file in folder.glob("*/*.safetensors"):
        file.write_bytes(b"nothing that could be loaded")
    photo(32, 32).save(tmp_path / "a.png")
    with chdir(tmp_path):
        assert main(["calibrate", str(folder), *words, "-o", "cache.json"]) == 2
    assert said in capsys.readouterr().err


def test_every_prompt_is_drawn_as_often_as_wanted_each_time_with_the_next_seed() -> None:
    wanted = Wanted([{"prompt": "a"}, {"prompt": "b"}], DiffusionParams(seed=7, num_outputs_per_prompt=2))
    asks, _ = asks_of(wanted, Door.of(SPEC, {}, "fake"))
    assert [(ask.prompt["prompt"], ask.params.seed) for ask in asks] == [("a", 7), ("a", 8), ("b", 9), ("b", 10)]
    assert {ask.params.num_outputs_per_prompt for ask in asks} == {1}


def test_the_choice_that_runs_the_fewest_blocks_within_the_difference_is_taken() -> None:
    trials = [
        Trial("teacache,threshold=0.1", 0.8, 0.01),
        Trial("teacache,threshold=0.2", 0.6, 0.09),
        Trial("teacache,threshold=0.3", 0.3, 0.4),
        Trial("dbcache,threshold=0.1", 0.5, 0.08),
        Trial("dbcache,threshold=0.2", 0.5, 0.05),
        Trial("careful", 0.55, 0.02),
        Trial("balanced", 0.45, 0.11),
    ]
    taken = [best(trials, difference) for difference in (0.001, 0.05, 0.1, 0.12, 1.0)]
    assert taken == ["none", "dbcache,threshold=0.2", "dbcache,threshold=0.2", "balanced", "teacache,threshold=0.3"]
    fits = Fits(TeaFit((1.0, 0.0)))
    assert suited(fits, trials, 0.1) == Fits(TeaFit((1.0, 0.0), 0.2), dbcache=0.2)
    assert suited(fits, trials, 0.001).tea.threshold == 0.1


def test_a_kind_that_skipped_nothing_keeps_its_threshold_and_people_are_told_what_is_no_finding() -> None:
    trials = [
        *(Trial(f"teacache,threshold={threshold}", 1.0, 0.0) for threshold in (0.7, 1.8)),
        *(Trial(f"dbcache,threshold={threshold}", *of) for threshold, of in ((0.1, (0.9, 0.01)), (0.2, (0.8, 0.2)))),
        Trial("magcache,threshold=0.01", 0.5, 0.3),
    ]
    found = suited(Fits(TeaFit((1.0,), 0.15)), trials, 0.1)
    assert (found.tea.threshold, found.dbcache, found.magcache) == (0.15, 0.1, 0.01)
    told = text(Calibration(replace(found, auto="none"), tuple(trials)), 0.1, None).splitlines()
    shorter = text(Calibration(replace(found, auto="none"), tuple(trials)), 0.1, None, seen=True)
    assert shorter.splitlines() == told[-7:] and told[-7] == ""
    assert told[-6:-3] == [
        "  teacache    threshold 0.15, not measured: nothing was skipped; take more steps",
        "  dbcache     threshold 0.1",
        "  magcache    threshold 0.01, the lowest that was tried: it changes more than 0.1",
    ]


@pytest.mark.parametrize("difference", [0.02, 0.05, 0.08, 0.2])
def test_no_preset_within_the_difference_runs_fewer_blocks_than_what_is_taken(difference: float) -> None:
    presets = {"careful": (0.6, 0.01), "balanced": (0.5, 0.06), "fast": (0.4, 0.04)}
    trials = [
        Trial("teacache,threshold=0.1", 0.7, 0.02),
        Trial("magcache,threshold=0.1", 0.45, 0.05),
        *(Trial(preset, *found) for preset, found in presets.items()),
    ]
    work = {trial.choice: trial.work for trial in trials}
    within = [preset for preset, (_, changed) in presets.items() if changed <= difference]
    assert within and work[best(trials, difference)] <= min(work[preset] for preset in within)


def test_how_many_steps_are_skipped_in_a_row_bounds_no_threshold_that_is_left_out() -> None:
    trials = [
        Trial("teacache,threshold=0.1", 0.8, 0.01),
        Trial("teacache,threshold=9,in_a_row=2,warm_up=1", 0.4, 0.02),
        Trial("teacache,threshold=0.2", 0.6, 0.3),
    ]
    assert suited(Fits(), trials, 0.1).tea.threshold == 0.1
    assert best(trials, 0.1) == "teacache,threshold=9,in_a_row=2,warm_up=1"


def test_a_threshold_suits_when_repeating_and_a_series_both_change_little_enough() -> None:
    trials = [
        Trial(f"dbcache,threshold={threshold},order={order}", 0.9 - threshold, difference)
        for threshold, differences in ((0.1, (0.01, 0.02)), (0.2, (0.03, 0.04)), (0.3, (0.05, 0.4)))
        for order, difference in enumerate(differences)
    ]
    magcache = [Trial("magcache,threshold=0.01", 0.6, 0.02), Trial("magcache,threshold=0.02", 0.5, 0.2)]
    found = suited(Fits(), [*trials, *magcache], 0.1)
    assert (found.dbcache, found.magcache, found.tea) == (0.2, 0.01, TeaFit())
    assert completed(cache_named("taylorseer"), found).threshold == 0.2
    assert completed(cache_named("magcache"), replace(found, ratios=(1.0,))).threshold == 0.01
    assert suited(Fits(), trials, 0.001).dbcache == 0.1


@pytest.mark.parametrize(("steps", "warm_up"), [(2, 1), (10, 2), (60, 4)])
def test_what_is_tried_follows_from_how_much_changed_between_steps_and_from_how_many_there_were(
    steps: int, warm_up: int
) -> None:
    seen = [Seen(0, 1, steps, 0.0, added, growth) for added, growth in ((0.2, 0.9), (0.4, 1.1), (0.6, 3.0))]
    choices = [cache_named(choice) for choice in candidates([*seen, Seen(1, 1, 2, 0.0, 0.4, 1.1)])]
    found = {kind: [each for each in choices if each.kind == kind] for kind in ("dbcache", "teacache", "magcache")}
    irregular = [each.threshold for each in found["teacache"] if each.in_a_row is None]
    regular = [(each.threshold, each.in_a_row) for each in found["teacache"] if each.in_a_row]
    assert irregular == [0.32, 0.48, 0.88]
    assert regular == [(4.0, 1), (4.0, 2)]
    assert [each.threshold for each in found["magcache"]] == [0.2, 0.45, 0.8]
    assert {each.warm_up for kind in ("dbcache", "magcache") for each in found[kind]} == {warm_up}
    assert {(each.threshold, each.order) for each in found["dbcache"]} >= {(0.04, 0), (0.04, 1), (0.24, 1)}
    assert sum(map(len, found.values())) == len(choices)
