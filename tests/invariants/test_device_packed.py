"""Networks whose files are packed, on a device that is not the CPU: they are read to it, draw what they draw on a CPU,
and no step makes the host wait.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse.core.config import OffloadConfig
from omnimuse.core.output import Event
from omnimuse.engine.local import start
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.checkpoints.packed import FILES, IN_ONE_FILE, as_floats
from tests.invariants.conftest import Subject, outputs, run, submit
from tests.invariants.test_device import FAST
from tests.invariants.test_packed_files import check_is_packed
from tests.second_device import SecondDevice, started
from tests.waits import long_asks, ticking, waits_of_steps

pytestmark = pytest.mark.crossed

DRAWN = [family for family in FAMILIES if family.name in ("ZImagePipeline", "FluxPipeline-dev")]
CASES = [
    pytest.param(family, how, offload, id=f"{how}-{offload}-{family.name}", marks=marks)
    for offload, marks in (("none", ()), ("layers", pytest.mark.slow), ("components", pytest.mark.slow))
    for how in FILES
    for family in (*DRAWN, *(() if how in IN_ONE_FILE else ALLROUNDERS))
]


@pytest.fixture
def device() -> Iterator[SecondDevice]:
    with SecondDevice() as device:
        yield device


@pytest.mark.parametrize(("subject", "how", "offload"), CASES, indirect=["subject"])
def test_a_second_device_draws_by_packed_files_what_the_cpu_draws_and_no_step_waits(
    subject: Subject, how: str, offload: str, device: SecondDevice, tmp_path: Path
) -> None:
    packed = replace(subject, folder=tmp_path / "packed")
    found, asks = FILES[how](subject.folder, packed.folder), long_asks(packed)
    with closing(start(packed.config(schedule=FAST))) as engine:
        expected = run(engine, *asks)
    chosen = packed.config(schedule=FAST, offload=OffloadConfig(offload))  # type: ignore[arg-type]
    with closing(started(chosen, device)) as engine:
        check_is_packed(engine, how, found, as_floats(subject.folder, found, tmp_path / "floats"))
        ids, events = submit(engine, *asks), list[Event]()
        ticks = waits_of_steps(engine.runner, device, ticking(engine, events))["denoise"]
    assert ticks
    assert [wait for _, waited in ticks for wait in waited] == []
    assert all(torch.equal(outputs(events, id_), plain) for id_, plain in zip(ids, expected, strict=True))
