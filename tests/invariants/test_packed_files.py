"""Networks whose files are packed draw what these stand for: for every family."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from omnimuse.core.config import OffloadConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.quant.codes import GROUP
from omnimuse.quant.linear import quantized_layers
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.checkpoints.packed import FILES, IN_ONE_FILE, Found, as_floats
from tests.invariants.conftest import Subject, run, with_params
from tests.invariants.test_quantized import check_all_is_packed, distance

pytestmark = pytest.mark.crossed

CASES = [
    pytest.param(family, how, id=f"{how}-{family.name}", marks=pytest.mark.shows(how.split(",")[0], "LoRA", "layers"))
    for how in FILES
    for family in (FAMILIES if how in IN_ONE_FILE else (*FAMILIES, *ALLROUNDERS))
]
"""Weights of BAGEL are in no single file that is read."""


@pytest.mark.parametrize(("subject", "how"), CASES, indirect=["subject"])
def test_packed_files_draw_what_they_stand_for_wherever_they_wait_and_whatever_is_worn(
    subject: Subject, how: str, tmp_path: Path
) -> None:
    packed, floats = tmp_path / "packed", tmp_path / "floats"
    found = FILES[how](subject.folder, packed)
    as_floats(subject.folder, found, floats)
    adapter = write(tmp_path / "worn.safetensors", layers_of(subject.folder))
    asks = [subject.ask(0), with_params(subject.ask(0), loras=[f"{adapter}:0.8"])]
    drawn = []
    for folder, offload in ((floats, "none"), (packed, "none"), (packed, "layers")):
        waits = OffloadConfig() if offload == "none" else OffloadConfig("layers", tmp_path)
        with contextlib.closing(start(Subject(subject.family, folder).config(offload=waits))) as engine:
            if folder == packed:
                check_is_packed(engine, how, found)
            drawn.append(run(engine, *asks))
    for expected, here, waiting in zip(*drawn, strict=True):
        assert distance(here, expected) < 1e-5
        assert bool((waiting == here).all())


def check_is_packed(engine: Engine, how: str, found: Found) -> None:
    """Blocks are packed in memory: all of them, but for formats in which rows have to be whole groups."""
    for name, tensors in found.items():
        network = engine.runner.pipeline.ctx.network(name)
        if how in ("bitsandbytes", "GGUF"):
            fits = how == "GGUF" or any(tensor.shape[1] % GROUP == 0 for tensor in tensors.values())
            assert bool(quantized_layers(network)) == fits
        else:
            check_all_is_packed(network)
