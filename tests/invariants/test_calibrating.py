"""Every family can be measured for its step caches, and draws by what was found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse.core.caches import CacheConfig
from omnimuse.engine.calibrate import calibrate
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME, write_fits
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.invariants.conftest import Subject, of, run, with_params

pytestmark = [of((*FAMILIES, *ALLROUNDERS)), pytest.mark.crossed, pytest.mark.slow]


def test_what_is_measured_of_a_model_is_read_beside_it_and_drawn_by(subject: Subject, tmp_path: Path) -> None:
    measured = replace(subject, folder=shutil.copytree(subject.folder, tmp_path / "model"))
    asks = [subject.ask(0, num_inference_steps=5, strength=None, seed=seed) for seed in (7, 8)]
    engine = start(measured.config())
    found = calibrate(engine, asks, 1e6)
    engine.close()
    assert found.fits.auto != "none" and found.fits.ratios
    write_fits(measured.folder / NAME, found.fits, {})
    engine = start(measured.config(cache=CacheConfig("auto")))
    drawn, named, exact = run(engine, *(with_params(asks[0], cache=name) for name in (None, found.fits.auto, "none")))
    engine.close()
    assert torch.allclose(drawn, named, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn, exact, rtol=1e-4, atol=1e-5), "it skips steps"
