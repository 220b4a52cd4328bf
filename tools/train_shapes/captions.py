"""English captions of scenes, in many phrasings, terse and long.

Every caption says the truth about its scene; what it leaves out (background, place, size) is free.
"""

from __future__ import annotations

import random

from tools.train_shapes.data import SIZE, Scene, Thing, plain_background

RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "on top of"),
    "below": ("below", "below", "under", "beneath"),
    "inside": ("inside", "inside", "in", "within"),
}
TOLD_RELATION = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
    "inside": "inside",
}
"""How a relation is called where it is called in one way."""
_OPENINGS = (
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "a simple picture of ",
    "there is ",
    "a photo of ",
)
_LONG_OPENINGS = (
    "a simple flat drawing that shows ",
    "this is a clean picture in which you can see ",
    "please draw a picture that shows ",
    "a minimal flat illustration of ",
)
_LONG_CLOSINGS = (
    ", in a clean and simple flat style",
    ", drawn with sharp edges and flat colours",
    ", with nothing else in the picture",
    ", high quality, simple shapes, no text and no shadows",
)
_COLUMNS, _ROWS = ("left", "", "right"), ("top", "", "bottom")


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def size_word(thing: Thing) -> str:
    """ "small", "large", or "" for the sizes between that have no name."""
    return "small" if thing.radius <= 26 else "large" if thing.radius >= 44 else ""


def place_words(thing: Thing) -> str:
    """Where a lone thing is: "in the top left", "on the left", "at the bottom", "in the middle", or ""."""
    column, row = (
        (names[0] if at < SIZE * 0.4 else names[2] if at > SIZE * 0.6 else names[1])
        for at, names in ((thing.x, _COLUMNS), (thing.y, _ROWS))
    )
    if row and column:
        return f"in the {row} {column}"
    if row or column:
        return f"at the {row}" if row else f"on the {column}"
    return "in the middle"


def name_thing(thing: Thing, rng: random.Random, sized: bool) -> str:
    word = size_word(thing) if sized and rng.random() < 0.3 else ""
    noun = f"{thing.colour} {thing.shape}"
    return article(f"{word} {noun}".strip())


def _single(thing: Thing, rng: random.Random) -> str:
    named = name_thing(thing, rng, sized=True)
    place = place_words(thing)
    if place and rng.random() < 0.4:
        return f"{named} {place}"
    if rng.random() < 0.12:
        return named.split(" ", 1)[1]
    return named


def _pair(scene: Scene, rng: random.Random) -> str:
    first, second = (name_thing(thing, rng, sized=False) for thing in scene.things)
    roll = rng.random()
    if scene.relation == "left of" and roll < 0.2:
        return rng.choice((f"{first} on the left and {second} on the right", f"{first} and {second} side by side"))
    if scene.relation == "right of" and roll < 0.1:
        return f"{first} on the right and {second} on the left"
    if scene.relation == "above" and roll < 0.1:
        return f"{first} at the top and {second} at the bottom"
    if scene.relation == "below" and roll < 0.1:
        return f"{first} at the bottom and {second} at the top"
    return f"{first} {rng.choice(RELATION_WORDS[scene.relation])} {second}"


def _triple(scene: Scene, rng: random.Random) -> str:
    names = [name_thing(thing, rng, sized=False) for thing in scene.things]
    listed = f"{names[0]}, {names[1]} and {names[2]}"
    if scene.relation == "row":
        return listed + rng.choice(("", "", " in a row", " from left to right"))
    return listed + rng.choice((" in a column", " from top to bottom", " stacked"))


def background_words(background: tuple[str, ...], rng: random.Random) -> str:
    """The phrase that closes a caption, with its leading blank or comma."""
    if len(background) == 1:
        colour = background[0]
        return rng.choice(
            (
                f" on {article(colour)} background",
                f" on {article(colour)} background",
                f" on {article(colour)} background",
                f", {colour} background",
                f" on {colour}",
                f" with {article(colour)} background",
                f" in front of {article(colour)} background",
            )
        )
    upper, lower = background
    return rng.choice(
        (
            f" on {article(upper)} to {lower} gradient background",
            f" on {article(upper)} to {lower} gradient",
            f", gradient background from {upper} to {lower}",
            f" on a background that fades from {upper} to {lower}",
        )
    )


def caption(scene: Scene, rng: random.Random) -> str:
    """One true sentence about ``scene``; most need under 24 tokens, one in twelve is long."""
    words = {
        1: lambda: _single(scene.things[0], rng),
        2: lambda: _pair(scene, rng),
        3: lambda: _triple(scene, rng),
    }
    text = words[len(scene.things)]()
    plain = scene.background == plain_background(tuple(thing.colour for thing in scene.things))
    if rng.random() > (0.5 if plain else 0.12):
        text += background_words(scene.background, rng)
    roll = rng.random()
    if roll < 0.08:
        text = rng.choice(_LONG_OPENINGS) + text + rng.choice(_LONG_CLOSINGS)
        if rng.random() < 0.25:
            text += "".join(rng.sample(_LONG_CLOSINGS, 3))
    elif roll < 0.25:
        text = rng.choice(_OPENINGS) + text
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:] + "."
    return text
