"""The tiny FLUX.2 checkpoints: complete, drawn everywhere, reproducible."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from omnimuse.core.spec import OPTIONS
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import quiet
from tests.checkpoints import flux2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet("transformers"):
        return flux2.build(tmp_path_factory.mktemp("flux2") / "tiny")


def test_the_checkpoint_is_complete_and_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    base, distilled = Checkpoint(folder), Checkpoint(flux2.build(tmp_path / "distilled", distilled=True))
    assert (base.arch, base.incomplete()) == ("Flux2KleinPipeline", None)
    assert [each.configs[OPTIONS]["is_distilled"] for each in (base, distilled)] == [False, True]


def test_no_tensor_is_left_at_zero_or_one_or_undrawn_but_the_counter_of_training_steps(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), name
            if name == "bn.running_var":
                assert (tensor > 0).all()
            if name != "bn.num_batches_tracked":
                assert tensor.unique().numel() > min(3, tensor.numel() - 1), name


def test_the_same_seed_gives_the_same_files_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again, other = flux2.build(tmp_path / "again"), flux2.build(tmp_path / "other", seed=1)
    for path in folder.rglob("*.safetensors"):
        name = path.relative_to(folder)
        assert path.read_bytes() == (again / name).read_bytes()
        assert path.read_bytes() != (other / name).read_bytes()
