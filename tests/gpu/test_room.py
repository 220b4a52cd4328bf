"""What requests are foretold to take of a real accelerator is what torch has for them there."""

from __future__ import annotations

import pytest
import torch

from omnimuse.core.config import DecodeConfig
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.gpu.conftest import Make
from tests.gpu.test_families import FAST, expect_alike
from tests.invariants.conftest import Subject, of, run, taking
from tests.invariants.test_foretelling import IN_TILES, larger, refused, tightened


@of((*FAMILIES, *ALLROUNDERS))
def test_what_never_fits_is_refused_by_what_small_ones_of_its_kind_take(subject: Subject, engine_on: Make) -> None:
    engine = engine_on(schedule=FAST)
    if (request := next(larger(engine, subject.asks()), None)) is None:
        pytest.skip("it has one size, or no larger one")
    assert "GiB" in (said := refused(engine, request)) or "MiB" in said


@of([family for family in FAMILIES if family.name in IN_TILES])
def test_what_has_no_room_is_decoded_in_tiles_and_takes_what_was_foretold(
    subject: Subject, engine_on: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (64, 96))
    ask = subject.ask(0, width=320, height=320, output_type="pt", num_outputs_per_prompt=1)
    engine = engine_on(schedule=FAST)
    tile, room = tightened(engine, engine.make_request(ask))
    found, took = taking(engine, engine.make_request(ask))
    assert tile and took < 1.05 * room
    assert f"decoded in tiles of {tile} pixels a side, as there is no room for more at once" in found.said
    same, whole = (run(engine_on(schedule=FAST, decode=DecodeConfig(tile=each)), ask) for each in (tile, None))
    expect_alike([found.output], same, subject)
    assert not torch.equal(found.output, *whole)
