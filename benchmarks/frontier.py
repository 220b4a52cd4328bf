"""A frontier as a picture: points by speed and score, and a line through those that no other one beats in both.

These and exact drawing have their names beside them, all others a number, which a key below tells.

Written as SVG by hand: nothing else is needed to draw it, and it changes only where figures do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, dist, floor
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 520, 60, 90, 40, 50
COLUMNS, ROW = 3, 16
"""Of the key below a plot, and the height of its rows."""
COLOURS = {
    "exact": "#000000",
    "steps": "#4c78a8",
    "caches": "#f58518",
    "weights": "#54a24b",
    "files": "#72b7b2",
    "tiles": "#eeca3b",
    "adapters": "#9d755d",
    "compiled": "#e45756",
    "pairs": "#b279a2",
}
LETTER, LINE, GAP = 6.2, 12, 5
"""A label's width for each letter, and its height, at most, and what is between two in a line, at least."""
RADIUS = 4
"""Of a point's circle."""
NEAR, REACH = 8, 200
"""How far from its point a label may be: without a leader, and with one."""
Spot = tuple[float, float]
"""A place on the page, to the right and down."""


@dataclass(frozen=True)
class Point:
    """One choice."""

    name: str
    group: str
    speed: float
    score: float


@dataclass(frozen=True)
class Panel:
    """One plot: its title, what the score is, and the points. `ticks` are scores that the axis may name, round ones if
    there are none; what grows upwards evenly is their `height`.
    """

    title: str
    score: str
    points: Sequence[Point]
    ticks: Sequence[float] = ()
    height: Callable[[float], float] = float


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in one of both and equals in the other, the slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda it: (-it.speed, -it.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best[::-1]


def write_svg(file: Path, panels: Sequence[Panel]) -> None:
    """All panels below each other, each with its key."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts, height = list[str](), 0
    for panel in panels:
        key = _key(panel)
        parts += [f'<g transform="translate(0 {height})">', *_panel(panel), *key, "</g>"]
        height += HEIGHT + ROW * ceil(len(key) / COLUMNS) + (ROW if key else 0)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    parts = [*head, *parts]
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def labels(points: Sequence[Point]) -> dict[Point, str]:
    """What stands beside each: the name of one that is exact or on the frontier, else a number."""
    named = {point for point in points if point.group == "exact"} | {*frontier(points)}
    numbers = {point: str(number) for number, point in enumerate((it for it in points if it not in named), 1)}
    return {point: numbers.get(point, point.name) for point in points}


def _key(panel: Panel) -> list[str]:
    """What the numbers stand for, column by column."""
    told = [(label, point) for point, label in labels(panel.points).items() if label != point.name]
    rows = ceil(len(told) / COLUMNS)
    lines = []
    for place, (label, point) in enumerate(told):
        x, y = LEFT + place // rows * (WIDTH - LEFT) // COLUMNS, HEIGHT + ROW * (place % rows) + 10
        number = f'<tspan fill="{COLOURS[point.group]}" font-weight="bold">{label}</tspan>'
        lines.append(f'<text x="{x}" y="{y}">{number} {escape(point.name)}</text>')
    return lines


def _panel(panel: Panel) -> list[str]:
    parts = [f'<text x="{LEFT}" y="20" font-size="15">{escape(panel.title)}</text>']
    if not panel.points:
        return parts
    x_ticks = _ticks([point.speed for point in panel.points], 0.5)
    scores = [point.score for point in panel.points]
    y_ticks = _enclosing(panel.ticks, scores) if panel.ticks else _ticks(scores, 10)
    low, high = panel.height(y_ticks[0]), panel.height(y_ticks[-1])
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(speed: float, score: float) -> Spot:
        right = (speed - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (panel.height(score) - low) / (high - low)
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
    crowd = sorted(panel.points, key=lambda it: (-it.speed, it.score))
    spots = [place(it.speed, it.score) for it in crowd]
    beside, circles, texts = labels(panel.points), list[str](), list[str]()
    for point, spot, box in zip(crowd, spots, placed([beside[it] for it in crowd], spots), strict=True):
        (x, y), colour = spot, COLOURS[point.group]
        if end := box.leader(spot):
            parts.append(f'<line x1="{x}" y1="{y}" x2="{end[0]}" y2="{end[1]}" stroke="{colour}"/>')
        circles.append(f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{colour}"/>')
        halo = 'stroke="white" stroke-width="3" paint-order="stroke"'
        texts.append(f'<text x="{box.x}" y="{box.y + 9}" fill="{colour}" {halo}>{escape(beside[point])}</text>')
    return [*parts, *circles, *texts]


def _ticks(values: Sequence[float], step: float) -> list[float]:
    """Round numbers around all values."""
    low, high = floor(min(values) / step), ceil(max(values) / step)
    return [step * number for number in range(low, max(high, low + 1) + 1)]


def _enclosing(ticks: Sequence[float], values: Sequence[float]) -> list[float]:
    """Those of some ticks, which lie around all values, that lie closely around them."""
    low = max(tick for tick in ticks[:-1] if tick <= min(values))
    high = min(tick for tick in ticks if tick > low and tick >= max(values))
    return [tick for tick in ticks if low <= tick <= high]


class Box(NamedTuple):
    """A label: its left end, its upper end, and its width; its height is `LINE`."""

    x: float
    y: float
    width: float

    def nearest(self, spot: Spot) -> Spot:
        """What of it is nearest to a spot."""
        x, y = spot
        return min(max(x, self.x), self.x + self.width), min(max(y, self.y), self.y + LINE)

    def distance(self, spot: Spot) -> float:
        """How far a spot is from it; 0 inside."""
        return dist(spot, self.nearest(spot))

    def leader(self, spot: Spot) -> Spot | None:
        """Where a line from its own point ends; None where it is so near that it needs no line."""
        return self.nearest(spot) if self.distance(spot) > NEAR else None

    def room(self, spot: Spot) -> float:
        """How far other points must be from it, so that it is seen to belong to its own: farther, or led to."""
        return max(RADIUS, min(self.distance(spot), NEAR))

    def over(self, other: Box) -> bool:
        """Whether both lie on one another, or read as one."""
        apart = self.x + self.width + GAP <= other.x or other.x + other.width + GAP <= self.x
        return not apart and abs(self.y - other.y) < LINE


def placed(names: Sequence[str], spots: Sequence[Spot]) -> list[Box]:
    """A label for every point, as near to it as can be: on no other label, and no nearer to another point's circle."""
    taken: list[Box] = []
    for name, spot in zip(names, spots, strict=True):
        around = _around(spot, LETTER * len(name))
        apart = (box for box in around if not any(map(box.over, taken)))
        own = (box for box in apart if all(box.distance(it) > box.room(spot) for it in spots if it != spot))
        taken.append(next(own, around[0]))
    return taken


def _around(spot: Spot, width: float) -> list[Box]:
    """Where a label might be: the nearest first, of those about as near the ones on the right, of these the highest."""
    x, y = round(spot[0]), round(spot[1]) - LINE // 2
    every = (
        Box(x + right, y + down, width)
        for right in [7, *range(-REACH, REACH, 8)]
        for down in range(-REACH, REACH, LINE // 3)
    )
    inside = [box for box in every if LEFT < box.x < WIDTH - box.width and TOP <= box.y <= HEIGHT - BOTTOM - LINE]
    beside = [box for box in inside if box.distance(spot) > RADIUS]
    return sorted(beside, key=lambda box: (box.distance(spot) // NEAR, box.x < x, abs(box.y - y), box.x))
