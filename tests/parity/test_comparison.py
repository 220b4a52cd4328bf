"""The comparison part by part: every family agrees, and what is wrong is found where it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from omnimuse.cli.app import main
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.layers.network import Network
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.parity import run as compared
from omnimuse.parity.compare import SORTED, UNLIKE, Part, compare, first_apart, likeness
from omnimuse.parity.notes import Trail
from omnimuse.parity.ours import our_trail
from omnimuse.parity.report import rows, verdict
from omnimuse.parity.run import Outcome, parity
from omnimuse.parity.theirs import load_theirs, their_trail
from omnimuse.pipeline.pipeline import Pipeline
from tests.checkpoints import chroma, flux
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.checkpoints.wishes import Family, Wish

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own


def config(folder: Path) -> Config:
    return Config(ModelConfig(str(folder), dtype="float32", device="cpu"))


@pytest.mark.crossed
@pytest.mark.shows("parity", families=[family.name for family in FAMILIES if not family.apart])
@pytest.mark.parametrize("family", [*FAMILIES, *ALLROUNDERS], ids=lambda family: family.name)
def test_every_family_agrees_part_by_part_or_says_what_cannot_be_compared(
    family: Family, tiny: Callable[[str], Path]
) -> None:
    folder, wish = tiny(family.name), family.wishes[0]
    if family.apart or (family.lent and find_spec("torchvision") is None):
        with pytest.raises(ModelError, match=re.escape(family.apart) or "diffusers cannot open|requires the Torchvis"):
            parity(config(folder), Ask(wish.asked, wish.params))
    if family.lent:
        with family.lent(folder, wish) as lent, mock.patch.object(compared, "load_theirs", partial(made_of, lent)):
            agrees(family, folder, wish)
    elif not family.apart:
        agrees(family, folder, wish)


def made_of(lent: Mapping[str, Any], checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The pipeline that the checkpoint names, of its components but for those that are lent."""
    parts = dict(lent)
    for name, (library, kind) in checkpoint.components.items():
        if name not in parts:
            how = {"torch_dtype": dtype} if checkpoint.has_weights(name) else {}
            parts[name] = getattr(import_module(library), kind).from_pretrained(checkpoint.path(name), **how)
    pipe = getattr(import_module("diffusers"), checkpoint.arch)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def agrees(family: Family, folder: Path, wish: Wish) -> None:
    """That both sides make the same of it, in every part."""
    outcome = parity(config(folder), Ask(wish.asked, wish.params))
    assert first_apart(outcome.parts, family.tolerance) is None, verdict(outcome, 1e-5)
    assert outcome.company <= 1e-5
    compared = " ".join(part.where for part in outcome.parts)
    assert all(word in compared for word in ("time steps", "block", "prediction", "result"))


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path]) -> Path:
    return tiny(flux.FAMILIES[0].name)


def spoilt(module: nn.Module) -> None:
    """One weight matrix of `module`, the first, becomes a little wrong."""
    weight = next(each for each in module.parameters() if each.ndim > 1)
    with torch.inference_mode():
        weight.mul_(1.01)


@pytest.mark.parametrize("number", [0, 1])
def test_a_wrong_block_is_found_at_its_block(folder: Path, number: int) -> None:
    wish = flux.FAMILIES[0].wishes[0]
    engine = start(config(folder))
    pipeline, request = engine.runner.pipeline, engine.make_request(Ask(wish.asked, wish.params))
    network = pipeline.ctx.network("transformer")
    assert isinstance(network, Network)
    spoilt(network.last_stack().blocks()[number])
    ours = our_trail(pipeline, request)
    theirs = their_trail(load_theirs(Checkpoint(folder), torch.float32), request, ["transformer"], pipeline.spec)
    engine.close()
    part = first_apart(compare(ours, theirs))
    assert part is not None
    assert part.where.startswith("step 1, ") and f"block {number} of" in part.where


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (lambda pipeline: spoilt(pipeline.ctx.components["vae"].decoder.up_blocks[1]), "decoder, up_blocks.1"),
        (lambda pipeline: pipeline.ctx.configs["vae"].update(shift_factor=0.2), "what the decoder is given"),
    ],
    ids=["a wrong part", "a wrong scale"],
)
def test_an_autoencoder_that_parts_is_found_where_it_does(
    folder: Path, wrong: Callable[[Pipeline], None], where: str
) -> None:
    wish = flux.FAMILIES[0].wishes[0]
    engine = start(config(folder))
    pipeline, request = engine.runner.pipeline, engine.make_request(Ask(wish.asked, wish.params))
    wrong(pipeline)
    ours = our_trail(pipeline, request)
    theirs = their_trail(load_theirs(Checkpoint(folder), torch.float32), request, ["transformer"], pipeline.spec)
    engine.close()
    part = first_apart(compare(ours, theirs))
    assert part is not None and (part.kind, part.where) == ("decoder", where)


def test_a_reference_whose_mask_hides_nothing_is_not_compared(tiny: Callable[[str], Path]) -> None:
    family = chroma.FAMILIES[0]
    padded = family.wishes[1]
    with pytest.raises(ModelError, match="hidden by a mask of floats"):
        parity(config(tiny(family.name)), Ask(padded.asked, padded.params))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (torch.arange(6.0).view(2, 3), torch.arange(6.0).view(1, 2, 3), (0.0, "")),
        (torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).T, (0.0, SORTED)),
        (torch.arange(6.0).view(1, 2, 3), torch.arange(12.0).view(4, 3), (0.0, "")),
        (torch.ones(6), torch.ones(7), (UNLIKE, "")),
    ],
    ids=["a side of one", "packed in another way", "more tokens behind", "another size"],
)
def test_tensors_are_compared_however_they_are_packed(ours: Tensor, theirs: Tensor, expected: object) -> None:
    assert likeness(ours, theirs) == expected


def test_the_command_prints_a_verdict_and_writes_a_page_with_both_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "parity.md"
    words = ["parity", str(folder), "a star", "--steps", "2", "--size", "64x64", "--report", str(page)]
    assert main(words) == 0
    assert "agrees with diffusers in every part" in capsys.readouterr().out
    text = page.read_text()
    assert "| result (1) |" in text and "parity-ours.png" in text
    assert "| prompt | `a star` |" in text and "| seed | `" in text and "torch " in text
    assert "Pixels: at most 0 of 255 apart, 100.00% of them equal." in text
    assert (tmp_path / "parity-ours.png").exists() and (tmp_path / "parity-diffusers.png").exists()
    page.unlink()
    assert main(words) == 2
    assert "parity-ours.png is there already" in capsys.readouterr().err


def test_a_part_counts_as_what_it_is_whatever_its_block_is_called() -> None:
    block = Part("block", "step 1, positive, block 0 of noise_refiner (context_refiner.0 there)", 0.0, 1)
    fewer = Part("time steps", "3 steps here, 4 there", UNLIKE)
    outcome = Outcome("Arch", "image", "float32", Trail(), Trail(), [block, fewer], 0.0)
    found = [(name, told) for name, _, told in rows(outcome, 1e-5)]
    assert found[:2] == [("time steps (1)", fewer.where), ("block (1)", "agrees")]


def test_a_tolerance_that_nothing_meets_ends_with_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", str(folder), "a star", "--steps", "2", "--size", "64x64", "--tolerance", "1e-12"]
    assert main(words) == 1
    assert "parts from diffusers at: " in capsys.readouterr().out
