"""Families are as small as we aim at, and those that are not become no larger."""

from __future__ import annotations

from omnimuse.models import REGISTRY
from tools.family_lines import BEGIN, END, PAGE, lines, written

LARGER: dict[str, int] = {}
"""Folders that have more lines than we aim at, and how many at most; the numbers may only shrink."""


def test_no_family_is_larger_than_we_aim_at_or_than_it_was() -> None:
    over = {each.family: each.all for each in lines() if each.over}
    grown = {name: count for name, count in over.items() if count > LARGER.get(name, 0)}
    assert not grown, f"see docs/add-a-model.md: {grown}"
    assert set(over) == set(LARGER), "one is small enough now: take it off the list"


def test_the_page_has_a_line_for_every_family_with_todays_numbers() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert all(f"| `{spec.family}` |" in table for spec in REGISTRY.specs()), "run `make lines`"
    assert table.strip() == written().strip(), "run `make lines`"
