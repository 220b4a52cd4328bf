"""Plain columns for people: no borders, no colours, no line breaks, so that pipes and logs get them, too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]], indent: int = 2) -> str:
    """The rows as lines, each column as wide as its widest cell; empty cells at the end take no room."""
    table = [list(row) for row in rows]
    if not table:
        return ""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(" " * indent + line.rstrip() for line in lines)
