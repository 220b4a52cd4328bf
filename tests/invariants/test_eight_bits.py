"""Networks whose files have blocks of floats in 8 bits draw what these stand for: for every network."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from omnimuse.core.config import OffloadConfig
from omnimuse.engine.local import start
from tests.checkpoints import bitsandbytes, eight_bits
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.families import NETWORKS
from tests.invariants.conftest import Subject, of, run, with_params

pytestmark = pytest.mark.crossed


@of(NETWORKS)
def test_blocks_of_8_bits_draw_what_they_stand_for_wherever_they_wait_and_whatever_is_worn(
    subject: Subject, tmp_path: Path
) -> None:
    small, floats = (Path(shutil.copytree(subject.folder, tmp_path / name)) for name in ("small", "floats"))
    for network in [path.name for path in small.glob("transformer*")]:
        bitsandbytes.unpack(floats / network, eight_bits.pack(small / network, "blocks"))
    adapter = write(tmp_path / "worn.safetensors", layers_of(subject.folder))
    asks = [subject.ask(0), with_params(subject.ask(0), loras=[f"{adapter}:0.8"])]
    drawn = []
    for folder, offload in (
        (floats, OffloadConfig()),
        (small, OffloadConfig()),
        (small, OffloadConfig("layers", tmp_path)),
    ):
        with contextlib.closing(start(Subject(subject.family, folder).config(offload=offload))) as engine:
            drawn.append(run(engine, *asks))
    for expected, found, waiting in zip(*drawn, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-5
        assert bool((waiting == found).all())
