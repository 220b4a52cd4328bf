"""Amounts of memory and of files, as people read them. No torch."""

from __future__ import annotations


def told_bytes(size: int) -> str:
    """`size` bytes to three figures, in the largest unit of which there is one: `0 bytes`, `12.5 MiB`, `3 GiB`."""
    if size < 1000:
        return f"{size} byte{'' if size == 1 else 's'}"
    amount, units = size / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while amount >= 999.5 and len(units) > 1:  # three figures of more would be written with an exponent
        amount, units = amount / 1024, units[1:]
    return f"{amount:.3g} {units[0]}" if amount < 999.5 else f"{amount:.0f} {units[0]}"
