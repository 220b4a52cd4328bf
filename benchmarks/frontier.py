"""A frontier as a picture: points by speed and score, and a line through those that no other one beats in both.

Written as SVG by hand: nothing else is needed to draw it, and it changes only where figures do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 620, 520, 60, 130, 40, 50
COLOURS = {
    "exact": "#000000",
    "steps": "#4c78a8",
    "caches": "#f58518",
    "weights": "#54a24b",
    "compiled": "#e45756",
    "pairs": "#b279a2",
}
LINE = 11
"""Pixels between two labels that would lie on one another."""
NEAR = 70
"""Points with fewer pixels between them may have labels that do."""


@dataclass(frozen=True)
class Point:
    """One choice."""

    name: str
    group: str
    speed: float
    score: float


@dataclass(frozen=True)
class Panel:
    """One plot: its title, what the score is, and the points."""

    title: str
    score: str
    points: Sequence[Point]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in one of both and equals in the other, the slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda it: (-it.speed, -it.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best[::-1]


def write_svg(file: Path, panels: Sequence[Panel]) -> None:
    """All panels side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({WIDTH * number} 0)">', *_panel(panel), "</g>"]
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(panel: Panel) -> list[str]:
    parts = [f'<text x="{LEFT}" y="20" font-size="15">{escape(panel.title)}</text>']
    if not panel.points:
        return parts
    x_ticks = _ticks([point.speed for point in panel.points], 0.5)
    y_ticks = _ticks([point.score for point in panel.points], 10)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(speed: float, score: float) -> tuple[float, float]:
        right = (speed - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (score - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(LEFT + right * across, 1), round(TOP + (1 - up) * down, 1)

    for tick in x_ticks:
        x, y = place(tick, y_ticks[0])
        parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        x, y = place(x_ticks[0], tick)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{LEFT + across}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 12}" text-anchor="middle">speed-up</text>')
    middle = TOP + down / 2
    parts.append(
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(panel.score)}</text>'
    )
    line = " ".join(f"{x},{y}" for x, y in (place(it.speed, it.score) for it in frontier(panel.points)))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#888" stroke-dasharray="4 3"/>')
    circles: list[str] = []
    labels: list[str] = []
    taken: list[tuple[float, float]] = []
    for point in sorted(panel.points, key=lambda it: (-it.score, it.speed)):
        x, y = place(point.speed, point.score)
        at = _free(x, y, taken)
        taken.append((x, at))
        colour = COLOURS[point.group]
        circles.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
        halo = 'stroke="white" stroke-width="3" paint-order="stroke"'
        labels.append(f'<text x="{x + 7}" y="{at + 4}" fill="{colour}" {halo}>{escape(point.name)}</text>')
    return [*parts, *circles, *labels]


def _ticks(values: Sequence[float], step: float) -> list[float]:
    """Round numbers around all values."""
    low, high = floor(min(values) / step), ceil(max(values) / step)
    return [step * number for number in range(low, max(high, low + 1) + 1)]


def _free(x: float, y: float, taken: Sequence[tuple[float, float]]) -> float:
    """Where a label may be that begins at `x`: at `y`, or as far below as others near it are."""
    near = sorted(at for other, at in taken if abs(other - x) < NEAR)
    for at in near:
        if abs(at - y) < LINE:
            y = at + LINE
    return round(y, 1)
