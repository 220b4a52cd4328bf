"""Networks whose files are packed are read to a real accelerator and draw there what they draw on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.config import OffloadConfig
from tests.checkpoints.packed import FILES, as_floats
from tests.gpu.conftest import engines
from tests.gpu.test_families import FAST, asks, expect_alike
from tests.invariants.conftest import Subject, run
from tests.invariants.test_device_packed import CASES
from tests.invariants.test_packed_files import check_is_packed


@pytest.mark.parametrize(("subject", "how", "offload"), CASES, indirect=["subject"])
def test_an_accelerator_draws_by_packed_files_what_the_cpu_draws(
    subject: Subject, how: str, offload: str, tmp_path: Path
) -> None:
    packed = replace(subject, folder=tmp_path / "packed")
    found = FILES[how](subject.folder, packed.folder)
    floats, wanted = as_floats(subject.folder, found, tmp_path / "floats"), asks(packed)
    with engines(packed.folder) as engine_on:
        expected = run(engine_on("cpu", schedule=FAST), *wanted)  # type: ignore[arg-type]
        engine = engine_on(schedule=FAST, offload=OffloadConfig(offload))  # type: ignore[arg-type]
        check_is_packed(engine, how, found, floats)
        expect_alike(run(engine, *wanted), expected, packed)  # type: ignore[arg-type]
