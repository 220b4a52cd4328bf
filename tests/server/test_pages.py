"""The pages about reliability and threats name tests; they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("page", "least"), [("docs/reliability.md", 50), ("docs/threat-model.md", 50)])
def test_every_test_that_a_page_names_exists(page: str, least: int) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= {path.stem, *re.findall(r"def (test_\w+)", path.read_text())}
    assert len(named) > least
    assert named - found == set()


def test_every_row_of_the_threat_model_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "threat-model.md").read_text().splitlines() if line.startswith("| ")]
    without = [row for row in rows if "`test_" not in row and not row.startswith(("| who", "| what", "| attack"))]
    assert without == []


def test_the_page_about_security_leads_to_what_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).exists(), name
