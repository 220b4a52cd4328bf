"""Every registered pipeline in bfloat16 loses no more than the reference implementation does in it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from omnimuse.engine.local import start
from tests.invariants.conftest import Subject, run
from tests.invariants.conftest import subject as subject
from tests.rounding import check_no_further


@pytest.mark.crossed
@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_in_bfloat16_it_is_as_near_float32_as_the_reference_is(subject: Subject, output_type: str) -> None:
    plain = subject.config()
    with closing(start(replace(plain, model=replace(plain.model, dtype="bfloat16")))) as engine:
        found = [each[0] for each in run(engine, *subject.asks(output_type=output_type))]
    check_no_further(subject.family, subject.folder, found, output_type)
