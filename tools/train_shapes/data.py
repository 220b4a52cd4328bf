"""Scenes of flat shapes and their pictures: what the demo model is trained on and graded against.

A scene is a background and one to three things, each with a shape, a colour, a centre and a radius in
pixels of a 128x128 picture.  ``draw_scene`` invents one from a random generator, ``Renderer`` paints it
(anti-aliased, by pasting masks drawn once at four times the size).  Captions live in ``captions.py``.
Nothing here knows about models.

Letters: h, w pixels of a picture; y grows downwards.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 128
SMALLEST_RADIUS = 18
LARGEST_RADIUS = 52
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
FOREIGN_SHAPES = ("heart",)
"""What the model was never shown: adapters teach it."""
RELATIONS = ("left of", "right of", "above", "below", "inside")
PALETTE = {
    "red": (222, 36, 40),
    "green": (36, 160, 64),
    "blue": (36, 76, 222),
    "yellow": (248, 222, 40),
    "orange": (248, 134, 20),
    "purple": (128, 44, 176),
    "pink": (252, 146, 196),
    "cyan": (56, 208, 228),
    "white": (250, 250, 250),
    "black": (14, 14, 14),
}
COLOURS = tuple(PALETTE)
# Upper colour to lower colour.  Pairs whose blend crosses no third palette colour on the way.
GRADIENTS = (
    ("blue", "white"),
    ("white", "blue"),
    ("purple", "white"),
    ("green", "white"),
    ("white", "green"),
    ("cyan", "white"),
    ("blue", "black"),
    ("black", "blue"),
    ("black", "red"),
    ("purple", "black"),
    ("blue", "cyan"),
    ("orange", "yellow"),
)
CONTAINERS = ("circle", "square")
_MARGIN = 4
# Centres lie on the grid of the transformer's tokens, and sizes are few and far apart: neighbouring choices
# blend into wobbly outlines, and nobody misses what lies between.
GRID = 16
_LONE_RADII = (26, 34, 44)
_PAIR_RADIUS = 26
_ROW_OF_THREE = (24, 64, 104)
_GRADIENT_CLEARANCE = 85.0
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One shape: centre and radius in whole pixels."""

    shape: str
    colour: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """A picture's content.  ``background`` is one colour, or (upper, lower) of a vertical gradient.

    ``relation`` is how things[0] stands to things[1]; "row" or "column" for three; "" for one.
    """

    background: tuple[str, ...]
    things: tuple[Thing, ...]
    relation: str = ""

    @property
    def combination(self) -> tuple[str, ...]:
        """What is asked for, positions and background apart: the unit of holding out."""
        words = [word for thing in self.things for word in (thing.colour, thing.shape)]
        return (*words, self.relation)


def held_out(scene: Scene, share: float) -> bool:
    """Whether the scene's combination belongs to the held-out ``share`` (0..1), by a fixed hash."""
    return zlib.crc32("|".join(scene.combination).encode()) % 1000 < share * 1000


def clear_of(colour: str, background: tuple[str, ...]) -> bool:
    """Whether ``colour`` can be told from ``background`` everywhere (from the blend too, on a gradient)."""
    if len(background) == 1:
        return colour != background[0]
    point, upper, lower = (np.array(PALETTE[name], float) for name in (colour, *background))
    along = lower - upper
    nearest = upper + along * np.clip((point - upper) @ along / (along @ along), 0, 1)
    return bool(np.linalg.norm(point - nearest) >= _GRADIENT_CLEARANCE)


def _draw_background(rng: random.Random, colours: tuple[str, ...]) -> tuple[str, ...]:
    kind = rng.random()
    if kind < 0.15:
        gradients = [pair for pair in GRADIENTS if all(clear_of(c, pair) for c in colours)]
        if gradients:
            return rng.choice(gradients)
    if kind < 0.45:
        choices = [(name,) for name in ("white", "black") if name not in colours]
        if choices:
            return rng.choice(choices)
    return (rng.choice([name for name in COLOURS if name not in colours]),)


def plain_background(colours: tuple[str, ...]) -> tuple[str, ...]:
    """The background a caption that mentions none mostly stands for: white, else black, else blue."""
    for name in ("white", "black", "blue"):
        if name not in colours:
            return (name,)
    return ("cyan",)


def _single_place(rng: random.Random) -> tuple[int, int, int]:
    radius = rng.choice(_LONE_RADII)
    if rng.random() < 0.5:
        return SIZE // 2, SIZE // 2, radius
    low, high = _MARGIN + radius, SIZE - _MARGIN - radius
    steps = [at for at in range(0, SIZE, GRID) if low <= at <= high]
    return rng.choice(steps), rng.choice(steps), radius


def _line_places(rng: random.Random, count: int, sideways: bool) -> list[tuple[int, int, int]]:
    """(x, y, radius) of ``count`` things in a row (``sideways``) or a column, first one left or on top."""
    middle = SIZE // 2
    centres, radius = ((middle - 32, middle + 32), _PAIR_RADIUS) if count == 2 else (_ROW_OF_THREE, SMALLEST_RADIUS)
    across = [middle + rng.choice((-GRID, 0, 0, GRID)) for _ in centres]
    places = zip(centres, across, strict=True)
    return [(c, a, radius) if sideways else (a, c, radius) for c, a in places]


def _pair_places(rng: random.Random, relation: str) -> list[tuple[int, int, int]]:
    if relation == "inside":
        middle = SIZE // 2
        return [(middle, middle, _PAIR_RADIUS), (middle, middle, LARGEST_RADIUS)]
    places = _line_places(rng, 2, relation in ("left of", "right of"))
    return places if relation in ("left of", "above") else places[::-1]


def draw_scene(rng: random.Random, count: int | None = None) -> Scene:
    """A random scene of ``count`` things (None: one 45 %, two 45 %, three 10 %), colours all different."""
    count = count or rng.choices((1, 2, 3), (0.45, 0.45, 0.10))[0]
    colours = tuple(rng.sample(COLOURS, count))
    shapes = [rng.choice(SHAPES) for _ in range(count)]
    relation = ""
    if count == 1:
        places = [_single_place(rng)]
    elif count == 2:
        relation = rng.choices(RELATIONS, (0.225, 0.225, 0.225, 0.225, 0.10))[0]
        places = _pair_places(rng, relation)
        if relation == "inside":
            shapes[1] = rng.choice(CONTAINERS)
    else:
        relation = rng.choice(("row", "column"))
        places = _line_places(rng, 3, relation == "row")
    things = tuple(Thing(s, c, *place) for s, c, place in zip(shapes, colours, places, strict=True))
    background = plain_background(colours) if rng.random() < 0.35 else _draw_background(rng, colours)
    return Scene(background, things, relation)


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a polygonal ``shape`` of radius 1 around the origin, y downwards."""
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0.0, -0.98), (0.98, 0.80), (-0.98, 0.80)]
    if shape == "star":
        turns = [math.pi * k / 5 for k in range(10)]
        lengths = [1.0, 0.42] * 5
        return [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(turns, lengths, strict=True)]
    if shape == "cross":
        n, f = 0.33, 0.96
        corners = [(-n, -f), (n, -f), (n, -n), (f, -n), (f, n), (n, n)]
        return corners + [(-x, -y) for x, y in corners]
    if shape == "heart":
        turns = [2 * math.pi * k / 60 for k in range(60)]
        height = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in turns]
        return [(0.98 * math.sin(a) ** 3, -0.9 * (y + 2.5) / 14.5) for a, y in zip(turns, height, strict=True)]
    raise ValueError(f"shape={shape!r} has no corners; use square, triangle, star, cross or heart")


def shape_mask(shape: str, radius: float) -> np.ndarray:
    """Coverage of ``shape`` in 0..1, float32 [2*ceil(radius)+3, same], centred."""
    half = math.ceil(radius) + 1
    side = 2 * half + 1
    scale = _SUPERSAMPLING
    image = Image.new("L", (side * scale, side * scale))
    pen = ImageDraw.Draw(image)
    middle, reach = side * scale / 2, radius * scale
    if shape in ("circle", "ring"):
        for share, ink in ((1.0, 255), (0.52, 0))[: 2 if shape == "ring" else 1]:
            low, high = middle - reach * share, middle + reach * share - 1
            pen.ellipse((low, low, high, high), fill=ink)
    else:
        pen.polygon([(middle + x * reach - 0.5, middle + y * reach - 0.5) for x, y in outline(shape)], fill=255)
    return np.asarray(image.reduce(scale), dtype=np.float32) / 255.0


class Renderer:
    """Paints scenes; holds the masks of every shape and radius, drawn on first use."""

    def __init__(self) -> None:
        self._masks: dict[tuple[str, int], np.ndarray] = {}
        self._colours = {name: np.array(rgb, np.float32) for name, rgb in PALETTE.items()}

    def _mask(self, thing: Thing) -> np.ndarray:
        key = (thing.shape, thing.radius)
        if key not in self._masks:
            self._masks[key] = shape_mask(*key)[..., None]
        return self._masks[key]

    def paint(self, scene: Scene) -> np.ndarray:
        """The scene's picture, uint8 [128, 128, 3]."""
        upper, lower = (self._colours[name] for name in (scene.background * 2)[:2])
        blend = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
        canvas = np.broadcast_to(upper + (lower - upper) * blend, (SIZE, SIZE, 3)).copy()
        for thing in sorted(scene.things, key=lambda t: -t.radius):
            mask = self._mask(thing)
            half = mask.shape[0] // 2
            top, left = thing.y - half, thing.x - half
            if min(top, left) < 0 or max(top, left) + mask.shape[0] > SIZE:
                raise ValueError(f"{thing} leaves the {SIZE}x{SIZE} picture; move it in or shrink it")
            area = canvas[top : top + mask.shape[0], left : left + mask.shape[0]]
            area += (self._colours[thing.colour] - area) * mask
        return (canvas + 0.5).astype(np.uint8)
