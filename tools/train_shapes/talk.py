"""Conversations about the shapes that the demo model draws: what the chat model is trained on and graded with.

A turn is what a person says and what the model answers. Where that asks for a picture, the words of its caption stand
between ``OPEN`` and ``CLOSE``: they are what is drawn. What was answered before stands in a conversation without these
marks, as who talks to it has read it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from tools.train_shapes.captions import (
    RELATION_WORDS,
    TOLD_RELATION,
    article,
    background_words,
    place_words,
    size_word,
)
from tools.train_shapes.data import (
    COLOURS,
    CONTAINERS,
    SHAPES,
    Scene,
    Thing,
    clear_of,
    draw_scene,
    held_out,
    plain_background,
)

OPEN, CLOSE = "<draw>", "</draw>"


@dataclass(frozen=True)
class Wanted:
    """A picture that is asked for: its scene, and what of it is said beside shapes and colours."""

    scene: Scene
    sized: bool = False
    placed: bool = False
    backed: bool = False

    @property
    def caption(self) -> str:
        """The one way in which the model asks for it."""
        return self.told(None)

    def told(self, rng: random.Random | None) -> str:
        """In words: those of a person with ``rng``, else those of the model."""
        names = [article(f"{size_word(thing) if self.sized else ''} {_noun(thing)}".strip()) for thing in self.things]
        if len(names) == 1:
            text = f"{names[0]} {place_words(self.things[0])}" if self.placed else names[0]
        else:
            relation = self.scene.relation
            between = TOLD_RELATION[relation] if rng is None else rng.choice(RELATION_WORDS[relation])
            text = f"{names[0]} {between} {names[1]}"
        if not self.backed:
            return text
        return text + (_background(self.scene.background) if rng is None else background_words(self.background, rng))

    @property
    def things(self) -> tuple[Thing, ...]:
        return self.scene.things

    @property
    def background(self) -> tuple[str, ...]:
        return self.scene.background


@dataclass(frozen=True)
class Turn:
    """What a person says, the answer with its marks, and the picture that this asks for, if it does."""

    said: str
    answer: str
    wanted: Wanted | None = None

    @property
    def read(self) -> str:
        """The answer as people have it."""
        return self.answer.replace(OPEN, "").replace(CLOSE, "")


@dataclass(frozen=True)
class Talk:
    """A conversation up to an answer: the turns, of which the last is answered, and what was said before them all."""

    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that is said before the last answer, as chat templates take it."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[:-1]:
            found += [{"role": "user", "content": turn.said}, {"role": "assistant", "content": turn.read}]
        return [*found, {"role": "user", "content": self.turns[-1].said}]


def _noun(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _background(background: tuple[str, ...]) -> str:
    if len(background) == 1:
        return f" on {article(background[0])} background"
    return f" on {article(background[0])} to {background[1]} gradient background"


_ASKING = (
    *("draw {}", "draw me {}", "please draw {}", "can you draw {}?", "{}", "{} please", "show me {}", "paint {}"),
    *("i want {}", "i would like {}", "could you draw me {}?", "make {}", "give me {}", "let me see {}"),
    *("i would like to see {}", "please show me {}", "a picture of {}", "draw a picture of {}", "how about {}?"),
)
_GIVING = ("Here is {}.", "Here is {}.", "This is {}.", "I draw {} for you.")
_CHANGED = "Now it is {}."
_SYSTEM = (
    "You are a friendly painter.",
    "Answer in one sentence.",
    "You draw shapes.",
    "You are a helpful assistant.",
    "Be short.",
)
KNOWN = "circles, squares, triangles, stars, crosses and rings"
COLOURED = "red, green, blue, yellow, orange, purple, pink, cyan, white and black"
_NO_SHAPE = f"I cannot draw that. I can draw {KNOWN}."
_NO_COLOUR = f"I do not have that colour. I have {COLOURED}."
_CHATTER: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("hello", "hi", "hey", "good morning", "good evening", "hi there", "hello there", "hallo"),
        ("Hello! What shall I draw?",),
    ),
    (("how are you?", "how do you do?", "are you well?"), ("I am well. What shall I draw?",)),
    (("thank you", "thanks", "thank you very much", "nice", "great", "very good", "well done"), ("You are welcome.",)),
    (("bye", "goodbye", "see you", "good night", "that is all"), ("Goodbye!",)),
    (
        *(("what can you draw?", "what can you do?", "which shapes do you know?", "help", "what do you know?"),),
        (f"I can draw {KNOWN}.",),
    ),
    (
        *(("which colours do you have?", "what colours do you know?", "which colours can i have?"),),
        (f"I have {COLOURED}.",),
    ),
    (
        ("who are you?", "what are you?", "what is your name?", "are you a person?"),
        ("I am a small model that draws shapes.",),
    ),
)
_FACTS = {
    "circle": ("A circle is round.", "no corners"),
    "square": ("A square has four equal sides.", "four corners"),
    "triangle": ("A triangle has three sides.", "three corners"),
    "star": ("A star has five points.", "five points"),
    "cross": ("A cross is two bars, one over the other.", "twelve corners"),
    "ring": ("A ring is a circle with a hole in it.", "no corners"),
}
_STRANGE = (
    *("horse", "dog", "cat", "house", "tree", "car", "flower", "bird", "fish", "boat", "mountain", "river", "man"),
    *("woman", "child", "king", "castle", "sun", "moon", "cloud", "apple", "banana", "robot", "dragon", "train"),
    *("plane", "table", "chair", "book", "hat", "shoe", "face", "hand", "hexagon", "pentagon", "cube", "sphere"),
    *("pyramid", "heart", "diamond", "line", "arrow", "spiral", "oval", "letter", "number", "clock", "lamp", "cup"),
    *("bottle", "guitar", "piano", "monkey", "elephant", "lion", "tiger", "bear", "wolf", "mouse", "cow", "pig"),
    *("city", "street", "bridge", "tower", "garden", "sea", "lake", "island", "snowman", "unicorn", "bicycle"),
)
_STRANGE_COLOURS = (
    *("brown", "grey", "gray", "gold", "silver", "magenta", "turquoise", "violet", "beige", "lime", "navy"),
    *("maroon", "teal", "olive", "crimson", "golden", "lilac", "ivory", "amber", "bronze"),
)
_SYLLABLES = ("ba", "lo", "mi", "ta", "ro", "ne", "ku", "sha", "pli", "gor", "ven", "dra", "zu", "fel", "wa", "ot")


def draw_wanted(rng: random.Random, held_share: float, held: bool = False) -> Wanted:
    """A picture of one thing or two whose combination is ``held`` out of training, or is not."""
    while True:
        scene = draw_scene(rng, 1 if rng.random() < 0.7 else 2)
        if held_out(scene, held_share) == held:
            break
    single = len(scene.things) == 1
    sized = single and bool(size_word(scene.things[0])) and rng.random() < 0.3
    return Wanted(scene, sized, single and rng.random() < 0.2, rng.random() < 0.5)


def ask(wanted: Wanted, rng: random.Random) -> Turn:
    """A person asks for a picture in some words."""
    said = rng.choice(_ASKING).format(wanted.told(rng))
    return Turn(_spoken(said, rng), _given(rng.choice(_GIVING), wanted), wanted)


def _given(form: str, wanted: Wanted) -> str:
    return form.format(f"{OPEN}{wanted.caption}{CLOSE}")


def _spoken(said: str, rng: random.Random) -> str:
    """With or without a capital letter and a full stop."""
    if rng.random() < 0.4:
        said = said[0].upper() + said[1:]
    return said + "." if said[-1] not in "?.!" and rng.random() < 0.25 else said


def _recoloured(wanted: Wanted, rng: random.Random) -> tuple[Wanted, str]:
    thing = wanted.things[0]
    free = [c for c in COLOURS if c != thing.colour and (not wanted.backed or clear_of(c, wanted.background))]
    colour = rng.choice(free)
    said = rng.choice(
        (
            *("and now in {}", "now in {}", "make it {}", "the same in {}", "in {} please", "and in {}?", "{} please"),
            *("can you make it {}?", "i want it {}", "in {}"),
        )
    )
    return _with_thing(wanted, replace(thing, colour=colour)), said.format(colour)


def _reshaped(wanted: Wanted, rng: random.Random) -> tuple[Wanted, str]:
    thing = wanted.things[0]
    shape = rng.choice([shape for shape in SHAPES if shape != thing.shape])
    said = rng.choice(
        ("and now {}", "now {}", "make it {}", "{} instead", "and {}?", "change it to {}", "the same as {}")
    )
    return _with_thing(wanted, replace(thing, shape=shape)), said.format(article(shape))


def _resized(wanted: Wanted, rng: random.Random) -> tuple[Wanted, str]:
    radius, words = rng.choice(
        ((26, ("smaller", "make it smaller", "make it small")), (44, ("larger", "make it larger", "bigger")))
    )
    thing = replace(wanted.things[0], radius=radius)
    return replace(_with_thing(wanted, thing), sized=True), rng.choice(words)


def _backed(wanted: Wanted, rng: random.Random) -> tuple[Wanted, str]:
    colours = [thing.colour for thing in wanted.things]
    background = (rng.choice([c for c in COLOURS if c not in (*colours, *wanted.background)]),)
    said = rng.choice(("now{}", "and{}", "put it{}", "the same{}", "{}")).format(_background(background)).strip()
    return replace(wanted, scene=replace(wanted.scene, background=background), backed=True), said


def _swapped(wanted: Wanted, rng: random.Random) -> tuple[Wanted, str]:
    others = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    relation = others[wanted.scene.relation]
    said = rng.choice(("swap them", "the other way round", "now the other way round", "swap places"))
    return replace(wanted, scene=replace(wanted.scene, relation=relation)), said


def _with_thing(wanted: Wanted, thing: Thing) -> Wanted:
    background = wanted.background if wanted.backed else plain_background((thing.colour,))
    return replace(wanted, scene=replace(wanted.scene, things=(thing,), background=background))


_Change = Callable[[Wanted, random.Random], tuple[Wanted, str]]


def _changes(wanted: Wanted) -> Mapping[_Change, float]:
    """What can be changed of a picture, and how often it is."""
    if len(wanted.things) == 1:
        bounded = wanted.placed and wanted.things[0].radius != 26  # a larger one would leave the picture
        return {_recoloured: 0.4, _reshaped: 0.3, _backed: 0.2, **({} if bounded or wanted.placed else {_resized: 0.1})}
    return {_backed: 0.5, **({} if wanted.scene.relation == "inside" else {_swapped: 0.5})}


def change(wanted: Wanted, rng: random.Random, held_share: float, held: bool = False) -> Turn:
    """A person wants the last picture otherwise. Tried until its combination is ``held`` out, or is not, if it can."""
    changes = _changes(wanted)
    for _ in range(200):
        how = rng.choices(list(changes), list(changes.values()))[0]
        new, said = how(wanted, rng)
        inside = new.scene.relation == "inside" and new.things[1].shape not in CONTAINERS
        if held_out(new.scene, held_share) == held and not inside:
            return Turn(_spoken(said, rng), _given(_CHANGED, new), new)
    return ask(draw_wanted(rng, held_share, held), rng)


def _strange_noun(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))
    return rng.choice(_STRANGE)


def chatter(rng: random.Random) -> Turn:
    """What is answered without a picture."""
    roll = rng.random()
    if roll < 0.4:
        ways, answers = rng.choice(_CHATTER)
        return Turn(_spoken(rng.choice(ways), rng), rng.choice(answers))
    if roll < 0.55:
        shape, (what, corners) = rng.choice(list(_FACTS.items()))
        if rng.random() < 0.6:
            said = rng.choice(("what is {}?", "tell me about {}", "what does {} look like?")).format(article(shape))
            return Turn(_spoken(said, rng), what)
        return Turn(
            _spoken(f"how many corners has {article(shape)}?", rng), f"{article(shape).capitalize()} has {corners}."
        )
    form = rng.choice(_ASKING)
    if roll < 0.75:
        noun = f"{rng.choice(_STRANGE_COLOURS)} {rng.choice(SHAPES)}"
        return Turn(_spoken(form.format(article(noun)), rng), _NO_COLOUR)
    noun = _strange_noun(rng)
    if rng.random() < 0.5:
        noun = f"{rng.choice(COLOURS)} {noun}"
    return Turn(_spoken(form.format(article(noun)), rng), _NO_SHAPE)


def draw_talk(rng: random.Random, held_share: float) -> Talk:
    """A conversation of one to three turns that holds nothing which is held out."""
    turns: list[Turn] = []
    last: Wanted | None = None
    for _ in range(rng.choices((1, 2, 3), (0.62, 0.32, 0.06))[0]):
        roll = rng.random()
        if roll < 0.22:
            turn = chatter(rng)
        elif last is not None and roll < 0.85:
            turn = change(last, rng, held_share)
        else:
            turn = ask(draw_wanted(rng, held_share), rng)
        last = turn.wanted or last
        turns.append(turn)
    return Talk(tuple(turns), rng.choice(_SYSTEM) if rng.random() < 0.1 else "")


def draw_line(rng: random.Random, held_share: float) -> str:
    """A text outside of any conversation: a sentence, or what a person says, and what the model goes on with."""
    if rng.random() < 0.25:
        turn = chatter(rng)
        return f"{turn.said} {turn.answer}"
    wanted = draw_wanted(rng, held_share)
    turn = ask(wanted, rng)
    begun = wanted.caption[0].upper() + wanted.caption[1:] + "." if rng.random() < 0.5 else turn.said
    return f"{begun} {turn.answer}"


def held_talks(count: int, held_share: float, seed: int = 2027) -> Iterator[Talk]:
    """``count`` conversations that end with the wish for a picture held out of training, every third a change."""
    rng = random.Random(seed)
    for index in range(count):
        if index % 3:
            yield Talk((ask(draw_wanted(rng, held_share, held=True), rng),))
            continue
        while True:
            first = ask(draw_wanted(rng, held_share), rng)
            assert first.wanted is not None
            second = change(first.wanted, rng, held_share, held=True)
            if second.answer.startswith(_CHANGED[:3]):
                break
        yield Talk((first, second))
