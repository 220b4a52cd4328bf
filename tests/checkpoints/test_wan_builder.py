"""The tiny Wan checkpoints: complete, drawn everywhere, and with a boundary that divides the steps of every wish."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnimuse.core.spec import OPTIONS
from omnimuse.diffusion.wrapped import DiffusersSolver
from omnimuse.loader.checkpoint import Checkpoint
from tests.checkpoints import wan
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.parts import assert_drawn_everywhere


@pytest.fixture(scope="module", params=wan.FLOW_SHIFT)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan.build(tmp_path_factory.mktemp("builder") / request.param, request.param)


def test_the_checkpoint_is_complete(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.arch == ("WanImageToVideoPipeline" if "-" in folder.name else "WanPipeline")
    assert checkpoint.incomplete() is None
    assert ("transformer_2" in checkpoint.components) == folder.name.startswith("A14B")
    assert ("image_encoder" in checkpoint.components) == folder.name.startswith("2.1-")
    assert checkpoint.configs[OPTIONS]["expand_timesteps"] is (folder.name == "5B")


def test_no_tensor_is_left_at_zero_or_one_or_undrawn(folder: Path) -> None:
    assert_drawn_everywhere(folder)


@pytest.mark.parametrize("kind", ["A14B", "A14B-I2V"])
def test_the_boundary_falls_between_the_steps_of_every_wish(tmp_path: Path, kind: str) -> None:
    checkpoint = Checkpoint(wan.build(tmp_path, kind))
    solver = DiffusersSolver("UniPCMultistepScheduler", checkpoint.configs["scheduler"], "scheduler")
    [family] = [family for family in FAMILIES if family.name == f"WanPipeline-{kind}"]
    for wish in family.wishes:
        assert wish.params.num_inference_steps
        timesteps = solver.plan(wish.params.num_inference_steps, 1).timesteps
        assert max(timesteps) > 875 > min(timesteps)
