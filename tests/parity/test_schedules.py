"""Every family's noise levels against those that its reference pipeline hands to its scheduler, bit for bit.

Levels that are spaced in float32 or in float64 differ in the last bit only, which no picture would show.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.pipeline.denoise import Denoise
from omnimuse.worker.find import find, pipeline_for
from tests.checkpoints.families import FAMILIES, Family


def theirs(folder: Path, arch: str, params: DiffusionParams, steps: int) -> Any:
    """The scheduler of the reference pipeline after it has drawn."""
    pipe = getattr(diffusers, arch).from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    accepted = inspect.signature(pipe.__call__).parameters
    sizes = {name: getattr(params, name) for name in ("height", "width", "num_frames", "max_sequence_length")}
    given = {name: value for name, value in sizes.items() if name in accepted and value is not None}
    pipe("a star", num_inference_steps=steps, output_type="latent", **given)
    return pipe.scheduler


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_levels_are_the_references_bit_for_bit(family: Family, tmp_path: Path) -> None:
    if all(wish.image is not None for wish in family.wishes):
        pytest.skip("its levels are those of the architecture without a picture")
    found = find(Config(ModelConfig(str(family.build(tmp_path / "tiny")), dtype="float32", device="cpu")))
    [loop] = [stage for stage in pipeline_for(found.spec).stages if isinstance(stage, Denoise)]
    solver, _ = loop.solver(found.checkpoint.configs)
    params = family.wishes[0].params
    request = found.door.make_request(Ask(family.wishes[0].asked, params), 0.0, 1)
    tokens = loop.token_count(found.checkpoint.configs, request)
    for steps in (3, 7, 11):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reference's own
            scheduler = theirs(tmp_path / "tiny", family.arch, params, steps)
        assert solver.plan(steps, tokens).sigmas == tuple(scheduler.sigmas.tolist())
