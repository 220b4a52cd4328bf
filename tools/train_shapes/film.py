"""Films of one flat shape that moves, and their captions: what the demo model of videos learns from.

A film is a row of scenes (`data.py`): one thing on a plain background that goes somewhere, grows, shrinks or stays.
Frames are the pictures of these scenes at half their size.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tools.train_shapes.captions import article
from tools.train_shapes.data import COLOURS, PALETTE, SIZE, Renderer, Scene, Thing

FRAMES = 9
SIDE = SIZE // 2
FPS = 8.0
SHAPES = ("circle", "square", "triangle", "cross", "ring")
BACKGROUNDS = ("white", "black", "blue", "yellow")
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "stay")
TURNS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Where it goes, as steps to the right and downwards."""
_WORDS = {
    "left": ("moves to the left", "moves left", "goes to the left", "slides left", "moving left"),
    "right": ("moves to the right", "moves right", "goes to the right", "slides right", "moving right"),
    "up": ("moves up", "moves upwards", "goes up", "rises", "moving up"),
    "down": ("moves down", "moves downwards", "goes down", "falls", "moving down"),
    "grow": ("grows", "gets bigger", "gets larger", "growing"),
    "shrink": ("shrinks", "gets smaller", "shrinking"),
    "stay": ("stays still", "stands still", "does not move", "stays where it is"),
}
TOLD_MOTION = {motion: words[0] for motion, words in _WORDS.items()}
"""How a motion is called where it is called in one way."""
_ON = (" on {} background", " on {} background", " in front of {} background")
_OPENINGS = ("a video of ", "a film of ", "an animation of ", "a short clip of ")
WORDS = ("a", "an", *_OPENINGS, *_ON, *(each for words in _WORDS.values() for each in words))
"""All that captions say besides colours and shapes."""
_RADIUS = 30
_PACE = 7  # pixels of a scene from one frame to the next
_WIDER = 3
_LANES = (44, 84)  # far apart: what is torn between neighbouring places tears its outline
_CLEAR = 125.0  # distance of a colour from its background, of 255 per channel


@dataclass(frozen=True)
class Film:
    """What is shown: the thing, what it does, and the lane (x or y) in which it goes somewhere."""

    shape: str
    colour: str
    motion: str
    background: str
    lane: int = SIZE // 2

    @property
    def combination(self) -> tuple[str, ...]:
        """What is asked for, background and lane apart: the unit of holding out."""
        return self.colour, self.shape, self.motion

    @property
    def scenes(self) -> list[Scene]:
        """One per frame."""
        return [Scene((self.background,), (self._thing(frame - FRAMES // 2),)) for frame in range(FRAMES)]

    def _thing(self, since: int) -> Thing:
        """The thing so many frames after the middle one."""
        x, y, radius = self.lane, self.lane, _RADIUS
        if self.motion in TURNS:
            right, down = TURNS[self.motion]
            x, y = (SIZE // 2 + right * _PACE * since, y) if right else (x, SIZE // 2 + down * _PACE * since)
        elif self.motion != "stay":
            radius += _WIDER * since * (1 if self.motion == "grow" else -1)
        return Thing(self.shape, self.colour, x, y, radius)


def backgrounds_of(colour: str) -> list[str]:
    """Those that a colour can be told from; the first is meant where none is told."""
    return [name for name in BACKGROUNDS if clear(colour, name)]


def told_apart(film: Film) -> bool:
    """Whether the thing can be told from its background."""
    return clear(film.colour, film.background)


def clear(colour: str, background: str) -> bool:
    """Whether a colour can be told from a background."""
    return math.dist(PALETTE[background], PALETTE[colour]) > _CLEAR


def draw_film(rng: random.Random) -> Film:
    """A random film."""
    colour = rng.choice(COLOURS)
    backgrounds = backgrounds_of(colour)
    background = backgrounds[0] if rng.random() < 0.4 else rng.choice(backgrounds)
    film = Film(rng.choice(SHAPES), colour, rng.choice(MOTIONS), background)
    return replace(film, lane=rng.choice(_LANES)) if film.motion in TURNS else film


def held_out(film: Film, share: float) -> bool:
    """Whether the film's combination belongs to the held-out ``share`` (0..1), by a fixed hash."""
    return zlib.crc32("|".join(film.combination).encode()) % 1000 < share * 1000


def draw_films(seed: str, share: float, held: bool = False) -> Iterator[Film]:
    """Endless films of a generator seeded with `seed`: those not of the held-out `share`, or only those that are."""
    rng = random.Random(seed)
    while True:
        film = draw_film(rng)
        if held_out(film, share) == held:
            yield film


def frames(film: Film, renderer: Renderer, first: int = 0, count: int = FRAMES) -> np.ndarray:
    """So many frames from the `first` on: uint8 [count, SIDE, SIDE, 3]."""
    large = np.stack([renderer.paint(scene) for scene in film.scenes[first : first + count]]).astype(np.uint16)
    return ((large.reshape(count, SIDE, 2, SIDE, 2, 3).sum((2, 4)) + 2) // 4).astype(np.uint8)


def caption(film: Film, rng: random.Random) -> str:
    """One true sentence about `film`; a plain background need not be told."""
    moving = rng.choice(_WORDS[film.motion])
    text = f"{article(f'{film.colour} {film.shape}')} {moving}"
    if film.background != backgrounds_of(film.colour)[0] or rng.random() < 0.4:
        text += rng.choice(_ON).format(article(film.background))
    if rng.random() < 0.12:
        text = rng.choice(_OPENINGS) + text
    return text[0].upper() + text[1:] + "." if rng.random() < 0.1 else text
