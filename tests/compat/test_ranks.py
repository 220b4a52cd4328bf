"""Pipelines of the contract on two ranks: weights shared by their own layers, and guidance by their own mixin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnimuse import Config, ModelConfig, Omni, ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.worker.find import find
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.compat.checkpoints import PLUGIN, renamed

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]
WISH = next(each for each in FAMILIES if each.kind == "3").wishes[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("contract") / "tiny", kind="3")


def drawn(folder: Path, arch: str, parallel: ParallelConfig | None = None) -> torch.Tensor:
    name = str(renamed(folder, arch))
    with Omni(name, plugin=PLUGIN, dtype="float32", device="cpu", parallel=parallel) as omni:
        [found] = omni.generate([WISH.asked], WISH.params, output_type="pt", progress=False)
    assert found.error is None
    picture: torch.Tensor = found.tensors["image"][0]
    return picture


@pytest.mark.parametrize(
    ("arch", "axis"),
    [("DocumentedPipeline", "tensor"), ("DocumentedPipeline", "cfg"), ("DocumentedStepPipeline", "tensor")],
)
def test_two_ranks_draw_what_one_draws(folder: Path, arch: str, axis: str) -> None:
    found = drawn(folder, arch, ParallelConfig(**{axis: 2}))
    torch.testing.assert_close(found, drawn(folder, arch), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("arch", "axis"), [("DocumentedPipeline", "ulysses"), ("DocumentedStepPipeline", "cfg")])
def test_axes_that_are_not_translated_are_refused(folder: Path, arch: str, axis: str) -> None:
    model = ModelConfig(str(renamed(folder, arch)), plugins=(PLUGIN,))
    with pytest.raises(ConfigError, match="parallel cannot be chosen for this model"):
        find(Config(model, parallel=ParallelConfig(**{axis: 2})))
