"""Where the time of a job went, as a picture: a bar for the command, and one for every prompt, by stages and steps.

Made from the record that the outcome prints, by Pillow alone. Called by `generate --plot`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnimuse.core.errors import RequestError
from omnimuse.media.destination import check_destination

WIDTH, BAR, GAP, EDGE, LINE = 960, 22, 46, 16, 14
"""Pixels: of the picture, of a bar's height, half of the way from one bar to the next, around everything, of a line."""
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")
KINDS = (".png", ".jpg", ".jpeg", ".webp")
MOST = 40
"""Bars in one picture; of more prompts the first are shown."""

Bar = tuple[str, Mapping[str, float], Mapping[str, Sequence[float]]]
"""What is written above a bar, seconds by part, and those of every step of a part that has some."""


def check_place(option: str, path: Path, suffixes: Collection[str], overwrite: bool) -> None:
    """RequestError unless a file with one of these endings can be written there, and none is in its place."""
    check_destination(path, suffixes)
    if path.exists() and not overwrite:
        raise RequestError(f"--{option} {path} is there already; choose another name, or --overwrite", option)


def bars_of(record: Mapping[str, Any]) -> list[Bar]:
    """The command as a whole, then every prompt."""
    whole = {name: seconds for name, seconds in record["seconds"].items() if name != "total"}
    rows = [(str(row["prompt"]), row["timings"], row["steps"]) for row in record["results"] if row["timings"]]
    return [("the command", whole, {}), *rows[:MOST]]


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Write the picture to `path`, whose ending says of which kind."""
    from PIL import Image, ImageDraw

    bars = bars_of(record)
    picture = Image.new("RGB", (WIDTH, 2 * EDGE + GAP * 2 * len(bars)), "white")
    pen = ImageDraw.Draw(picture)
    longest = max(sum(parts.values()) for _, parts, _ in bars) or 1.0
    for number, (name, parts, steps) in enumerate(bars):
        top = EDGE + GAP * 2 * number
        total = sum(parts.values())
        pen.text((EDGE, top), f"{_plain(name):.100}: {total:.3g} s", fill="black")
        wide = (WIDTH - 2 * EDGE) / longest
        places = spans(list(parts.values()), wide)
        for part, (left, right), colour in zip(parts, places, _endless(), strict=False):
            pen.rectangle((EDGE + left, top + 16, EDGE + right, top + 16 + BAR), fill=colour)
            for _, end in spans(steps.get(part, ()), wide)[:-1]:  # a line where a step ends
                pen.line((EDGE + left + end, top + 16, EDGE + left + end, top + 16 + BAR), fill="white")
        at, line = EDGE, top + 46
        for (part, seconds), colour in zip(parts.items(), _endless(), strict=False):
            label = f"{part} {seconds:.3g} s"
            width = 24 + int(pen.textlength(label))
            if at + width > WIDTH:
                at, line = EDGE, line + LINE
            pen.rectangle((at, line + 2, at + 8, line + 10), fill=colour)
            pen.text((at + 12, line), label, fill="black")
            at += width
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def spans(parts: Sequence[float], wide: float) -> list[tuple[int, int]]:
    """From where to where each part is drawn, one after the other: `wide` pixels a second, and one at least."""
    found, at = [], 0.0
    for seconds in parts:
        end = at + wide * seconds
        found.append((round(at), max(round(end) - 1, round(at))))
        at = end
    return found


def _endless() -> list[str]:
    return [*COLOURS] * 8


def _plain(text: str) -> str:
    """What Pillow's own font can write."""
    return text.encode("latin-1", "replace").decode("latin-1")
