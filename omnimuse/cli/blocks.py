"""A picture in a terminal that has 24 bits of colour: every letter is a block of two pixels, one above the other."""

from __future__ import annotations

from typing import Any

COLUMNS = 32


def in_blocks(picture: Any, columns: int = COLUMNS) -> str:
    """Lines of at most `columns` blocks that show a Pillow picture, each with its end."""
    width = min(columns, picture.width)
    rows = max(1, round(picture.height * width / picture.width / 2))
    pixels = picture.convert("RGB").resize((width, 2 * rows)).load()
    lines = [[(pixels[x, 2 * row], pixels[x, 2 * row + 1]) for x in range(width)] for row in range(rows)]
    return "".join("".join(_block(*pair) for pair in line) + "\x1b[0m\n" for line in lines)


def _block(above: tuple[int, int, int], below: tuple[int, int, int]) -> str:
    colours = [";".join(map(str, colour)) for colour in (above, below)]
    return f"\x1b[38;2;{colours[0]};48;2;{colours[1]}m\u2580"
