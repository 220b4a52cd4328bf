"""Memory that a request takes beside the weights: of no family more than diffusers takes, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peaks import compare
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # where there are no units for bfloat16, each has memory to add up in
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_request_takes_no_more_memory_than_the_reference(
    family: Family, dtype: str, tiny: Callable[[str], Path]
) -> None:
    found = compare(family, tiny(family.name), larger=1, dtype=dtype)
    assert 0 < found.ours <= found.theirs
    assert found.reckoned <= found.ours, "a request that fits would be refused"
