"""Every family can be measured for its step caches, and draws by what was found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from omnimuse.core.caches import PRESETS, CacheConfig
from omnimuse.engine.calibrate import Calibration, calibrate
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME, write_fits
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.distance import distance
from tests.invariants.conftest import Subject, of, run, with_params

pytestmark = [of((*FAMILIES, *ALLROUNDERS)), pytest.mark.crossed, pytest.mark.slow]


@pytest.mark.shows("auto")
def test_what_is_measured_of_a_model_is_read_beside_it_and_drawn_by(subject: Subject, tmp_path: Path) -> None:
    measured = replace(subject, folder=shutil.copytree(subject.folder, tmp_path / "model"))
    asks = [subject.ask(0, num_inference_steps=5, strength=None, seed=seed) for seed in (7, 8, 9)]

    def found(difference: float) -> Calibration:
        engine = start(measured.config())
        try:
            return calibrate(engine, asks, difference)
        finally:
            engine.close()

    saving = [trial.difference for trial in found(1e6).trials if trial.work < 0.9]
    bound = median(saving)  # some choices change more
    calibration = found(bound)
    auto, trials = calibration.fits.auto, {trial.choice: trial for trial in calibration.trials}
    assert auto != "none" and calibration.fits.ratios
    within = [trial for trial in calibration.trials if trial.difference <= bound]
    assert trials[auto].work == min(trial.work for trial in within) and {*PRESETS} <= {*trials}
    write_fits(measured.folder / NAME, calibration.fits, {})
    engine = start(measured.config(cache=CacheConfig("auto")))
    drawn, named, exact = (
        run(engine, *(with_params(ask, cache=name) for ask in asks)) for name in (None, auto, "none")
    )
    engine.close()
    assert all(torch.allclose(new, same, rtol=1e-4, atol=1e-5) for new, same in zip(drawn, named, strict=True))
    changes = [distance(new, old) for new, old in zip(drawn, exact, strict=True)]
    assert median(changes) == pytest.approx(trials[auto].difference, rel=1e-2)
    assert 1e-5 < median(changes) <= 1.01 * bound, "it skips steps, and outputs change no more than they may"
