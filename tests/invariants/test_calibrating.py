"""Every family can be measured for its step caches by the command, and draws by what was found."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from omnimuse.cli import main
from omnimuse.cli.app import parser_of
from omnimuse.cli.calibrate import asks_of
from omnimuse.cli.job import read_wanted
from omnimuse.core.caches import PRESETS, CacheConfig
from omnimuse.core.request import Ask, Door, Request
from omnimuse.engine.calibrate import unmeasured
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME, read_fits
from omnimuse.worker.find import find
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.checkpoints.wishes import Wish
from tests.checkpoints.words import files_of, words_of
from tests.distance import distance
from tests.invariants.conftest import Subject, of, run, with_params

pytestmark = of((*FAMILIES, *ALLROUNDERS))


def said(wish: Wish, files: Path, **choices: Any) -> list[str]:
    """Options of a command that draws what the wish is; `choices` change its parameters."""
    return [*words_of(replace(wish.params, **choices), wish.negative), *files_of(wish, files)]


def asked(door: Door, words: Sequence[str]) -> list[Ask]:
    """What `omnimuse calibrate MODEL` and those words draw."""
    return asks_of(read_wanted(parser_of("calibrate").read(["MODEL", *words]), io.StringIO()), door)[0]


def kinds(request: Request) -> tuple[Any, ...]:
    """What comes with a request, whatever a file makes of its numbers."""
    sizes = [(each.width, each.height) for each in (*request.images, *request.videos)]
    return sizes, [(each.rate, each.channels) for each in request.sounds], request.region is None


def test_whatever_a_family_draws_from_can_be_said_to_what_measures_it(subject: Subject, tmp_path: Path) -> None:
    door = find(subject.config()).door
    assert not unmeasured(door)
    for wish in subject.family.wishes:
        [ask] = asked(door, [wish.prompt or "a ring", *said(wish, tmp_path)])
        found, expected = (door.make_request(each, 0.0, 0) for each in (ask, Ask(wish.asked, wish.params)))
        assert kinds(found) == kinds(expected)
        rate = wish.params.fps or found.params.fps  # a film in a file has one
        assert (found.params, found.extra) == (replace(expected.params, fps=rate), expected.extra)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.shows("auto")
def test_what_is_measured_of_a_model_is_read_beside_it_and_drawn_by(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = replace(subject, folder=shutil.copytree(subject.folder, tmp_path / "model"))
    kept, [wish, *_] = measured.folder / NAME, subject.family.wishes
    words = [*[wish.prompt] * 3, *said(wish, tmp_path, num_inference_steps=5, strength=None, seed=7)]

    def found(difference: float) -> dict[str, Any]:
        here = [str(measured.folder), "--dtype", "float32", "--device", "cpu", "-o", str(kept), "--overwrite", "--json"]
        assert main(["calibrate", *here, *words, "--difference", str(difference)]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    saving = [trial["difference"] for trial in found(1e6)["trials"] if trial["work"] < 0.9]
    bound = median(saving)  # some choices change more
    calibration = found(bound)
    auto, trials = calibration["auto"], {trial["choice"]: trial for trial in calibration["trials"]}
    assert auto == read_fits(kept).auto != "none" and read_fits(kept).ratios
    within = [trial for trial in trials.values() if trial["difference"] <= bound]
    assert trials[auto]["work"] == min(trial["work"] for trial in within) and {*PRESETS} <= {*trials}
    engine = start(measured.config(cache=CacheConfig("auto")))
    asks = [with_params(ask, output_type="latent") for ask in asked(engine.door, words)]
    drawn, named, exact = (
        run(engine, *(with_params(ask, cache=name) for ask in asks)) for name in (None, auto, "none")
    )
    engine.close()
    assert all(torch.allclose(new, same, rtol=1e-4, atol=1e-5) for new, same in zip(drawn, named, strict=True))
    changes = [distance(new, old) for new, old in zip(drawn, exact, strict=True)]
    assert median(changes) == pytest.approx(trials[auto]["difference"], rel=1e-2)
    assert 1e-5 < median(changes) <= 1.01 * bound, "it skips steps, and outputs change no more than they may"
