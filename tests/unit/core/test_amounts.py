"""Amounts are read in the unit that is theirs, with as many figures as say something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import omnimuse
from omnimuse.core.amounts import told_bytes

KIB, MIB, GIB, TIB = (2**power for power in (10, 20, 30, 40))


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "0.977 KiB"),
        (KIB, "1 KiB"),
        (50 * MIB + MIB // 2, "50.5 MiB"),
        (MIB - 1, "1 MiB"),
        (1023 * MIB, "0.999 GiB"),
        (999 * MIB, "999 MiB"),
        (GIB, "1 GiB"),
        (80 * GIB, "80 GiB"),
        (3 * TIB, "3 TiB"),
        (5000 * TIB, "5000 TiB"),
    ],
)
def test_an_amount_is_told_in_its_own_unit(size: int, told: str) -> None:
    assert told_bytes(size) == told


def test_nobody_else_reckons_bytes_for_people() -> None:
    """A unit that stands in a message beside a number of its own says 0.00 of it one day."""
    reckoned = re.compile(r"[/>]+ ?(2 ?\*\* ?[1234]0|[1234]0|1e[369]|1024)\b[^{}\n]*\} ?[kKMGT]i?B\b")
    root = Path(omnimuse.__file__).parent
    found = [str(path) for path in root.rglob("*.py") if reckoned.search(path.read_text(encoding="utf-8"))]
    assert not found
