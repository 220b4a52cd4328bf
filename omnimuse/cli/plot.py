"""Where the time of a job went, as a picture: a bar for the command, and one for every prompt, by stages and steps,
with a line in it for the memory that was held; and a bar for every block of a network.

Made from the record that the outcome prints, by Pillow alone. Called for `--plot`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import RequestError
from omnimuse.media.destination import check_destination, write_whole

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, BAR, GAP, EDGE, LINE = 960, 22, 46, 16, 14
"""Pixels: of the picture, of a bar's height, half of the way from one bar to the next, around everything, of a line."""
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")
KINDS = (".png", ".jpg", ".jpeg", ".webp")
MOST = 40
"""Bars in one picture; of more prompts the first are shown."""

Bar = tuple[str, Mapping[str, float], Mapping[str, Sequence[float]], Mapping[str, Sequence[int]]]
"""What is written above a bar, seconds by part, and those of every step of a part that has some; bytes that were held
at the end of each."""


def check_place(option: str, path: Path, suffixes: Collection[str], overwrite: bool) -> None:
    """RequestError unless a file with one of these endings can be written there, and none is in its place."""
    try:
        check_destination(path, suffixes)
    except RequestError as problem:
        raise RequestError(f"--{option} {path}: {problem}", option) from None
    if path.exists() and not overwrite:
        raise RequestError(f"--{option} {path} is there already; choose another name, or --overwrite", option)


def bars_of(record: Mapping[str, Any]) -> list[Bar]:
    """The command as a whole, then every prompt."""
    whole = {name: seconds for name, seconds in record["seconds"].items() if name != "total"}
    there = [row for row in record["results"] if row["timings"]]
    rows = [(str(row["prompt"]), row["timings"], row["steps"], row["bytes"]) for row in there]
    return [*([("the command", whole, {}, {})] if whole else []), *rows[:MOST]]


def blocks_of(record: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Seconds of every run of each block of a network, for the prompt whose runs of it took longest."""
    found: dict[str, Sequence[float]] = {}
    for row in record["results"]:
        for name, runs in row["blocks"].items():
            found[name] = max(found.get(name, ()), runs, key=sum)
    return found


def held_of(record: Mapping[str, Any]) -> dict[str, int]:
    """The most bytes that were held after a run of each block, for any prompt."""
    found: dict[str, int] = {}
    for row in record["results"]:
        for name, held in row["block_bytes"].items():
            found[name] = max(found.get(name, 0), *held)
    return found


def plot(record: Mapping[str, Any], path: Path, replace: bool = False, one: str = "run") -> None:
    """Write the picture to `path`, whose ending says of which kind; FileExistsError if it must not `replace` a file.

    What blocks have several times of is called `one`.
    """
    from PIL import Image, ImageDraw

    bars, blocks = bars_of(record), blocks_of(record)
    below = EDGE + GAP * 2 * len(bars)
    picture = Image.new("RGB", (WIDTH, below + LINE * (len(blocks) + 1 if blocks else 0) + EDGE), "white")
    pen = ImageDraw.Draw(picture)
    _draw_blocks(pen, below, blocks, one)
    longest = max((sum(parts.values()) for _, parts, *_ in bars), default=0.0) or 1.0
    most = max((count for *_, held in bars for every in held.values() for count in every), default=0)
    for number, (name, parts, steps, held) in enumerate(bars):
        top = EDGE + GAP * 2 * number
        total = sum(parts.values())
        line = line_of(parts, steps, held)
        told = f", up to {told_bytes(max(found for _, found in line))} held" if line else ""
        pen.text((EDGE, top), f"{_plain(name):.100}: {total:.3g} s{told}", fill="black")
        wide = (WIDTH - 2 * EDGE) / longest
        places = spans(list(parts.values()), wide)
        for part, (left, right), colour in zip(parts, places, _endless(), strict=False):
            pen.rectangle((EDGE + left, top + 16, EDGE + right, top + 16 + BAR), fill=colour)
            for _, end in spans(steps.get(part, ()), wide)[:-1]:  # a line where a step ends
                pen.line((EDGE + left + end, top + 16, EDGE + left + end, top + 16 + BAR), fill="white")
        points = [(EDGE + at * wide, top + 16 + BAR - 2 - (BAR - 4) * found / most) for at, found in line]
        if len(points) > 1:
            pen.line(points, fill="black", width=2)
        at, below = EDGE, top + 46
        for (part, seconds), colour in zip(parts.items(), _endless(), strict=False):
            label = f"{part} {seconds:.3g} s"
            width = 24 + int(pen.textlength(label))
            if at + width > WIDTH:
                at, below = EDGE, below + LINE
            pen.rectangle((at, below + 2, at + 8, below + 10), fill=colour)
            pen.text((at + 12, below), label, fill="black")
            at += width
    content = BytesIO()
    picture.save(content, Image.registered_extensions()[path.suffix.lower()])
    write_whole(path, content.getvalue(), replace=replace)


def _draw_blocks(pen: ImageDraw, top: int, blocks: Mapping[str, Sequence[float]], one: str) -> None:
    """A line for every block from `top` on: its name, what it took in all as a bar, and how often it ran."""
    if not blocks:
        return
    longest = max(map(sum, blocks.values())) or 1.0
    wide = max(int(pen.textlength(_plain(name))) for name in blocks) + 2 * EDGE
    pen.text((EDGE, top), f"blocks: milliseconds in all, and of one {one}", fill="black")
    for number, (name, runs) in enumerate(blocks.items(), 1):
        at, took = top + LINE * number, sum(runs)
        told = f"{1000 * took:.4g} ms, {len(runs)} x {1000 * took / len(runs):.3g}"
        room = WIDTH - wide - EDGE - int(pen.textlength(told)) - 8
        end = wide + max(1, round(room * took / longest))
        pen.text((EDGE, at), _plain(name), fill="black")
        pen.rectangle((wide, at + 2, end, at + LINE - 4), fill=COLOURS[0])
        pen.text((end + 8, at), told, fill="black")


def line_of(
    parts: Mapping[str, float], steps: Mapping[str, Sequence[float]], held: Mapping[str, Sequence[int]]
) -> list[tuple[float, int]]:
    """When, in seconds from the beginning of the bar, how many bytes were held: at the end of every run and step."""
    found, began = list[tuple[float, int]](), 0.0
    for part, seconds in parts.items():
        at = began
        for took, count in zip(steps.get(part, (seconds,)), held.get(part, ()), strict=False):
            at += took
            found.append((at, count))
        began += seconds
    return found


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
    """What Pillow's own font can write in one line."""
    return " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")
