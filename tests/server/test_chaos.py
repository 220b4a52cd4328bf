"""A seeded spell of bad luck. A longer one: `python -m tests.server.chaos --seconds 600 --seed 7`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.chaos import Chaos


@pytest.mark.costly
@pytest.mark.timeout(600)
def test_no_job_is_lost_in_a_spell_of_bad_luck(tmp_path: Path) -> None:
    with Chaos(tmp_path, seed=2026) as chaos:
        chaos.round()
        report = chaos.settle()
    assert report.accepted >= 5 and len(report.done) == 7
    assert report.lost == []
    assert report.unfinished == []
    assert report.different == []
    assert report.faults == []
    assert report.left_behind == []
