"""`make features`: what every family can be asked for and started with, and what goes together, as `docs/features.md`.

Nothing of it is written by hand. A cell is what a door or the build passes say to the tiny checkpoint of a family
(`tests/checkpoints`), and, where they let it in, a test that says by its mark that it shows it (`tests/shows.py`). A
feature is one line in `FEATURES`. A test makes the page again and compares.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omnimuse.core.config import (
    CacheConfig,
    CompileConfig,
    Config,
    DecodeConfig,
    ModelConfig,
    OffloadConfig,
    ParallelConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.guidance import ONLY_POSITIVE
from omnimuse.core.loras import Lora
from omnimuse.core.request import Ask, Door
from omnimuse.media.clip import clip_of
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.adapters import obstacle
from omnimuse.worker.build import SHAPES, begin, run
from omnimuse.worker.find import find
from tests.checkpoints.families import DRAWING
from tests.checkpoints.wishes import Family, Wish, chord, film, halves, photo
from tools.models_page import table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "features.md"
WHERE = ("tests/invariants", "tests/parity", "tests/dist")
SIDE = 64
Prompt = dict[str, Any]


class Impossible(Exception):
    """Nothing is refused: there is no such thing here. Its text says why."""


@dataclass(frozen=True, eq=False)
class Stand:
    """A family's tiny checkpoint, which is asked."""

    family: Family
    folder: Path
    starts: dict[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def door(self) -> Door:
        """What it lets in."""
        return find(self.config({})).door

    @cached_property
    def networks(self) -> frozenset[str]:
        """What is evaluated at every step."""
        components = self.door.spec.components.items()
        return frozenset(each.network for name, each in components if each.network and name.startswith("transformer"))

    def config(self, topics: Mapping[str, Any]) -> Config:
        """How an engine over it is started with these topics."""
        return Config(ModelConfig(str(self.folder), dtype="float32", device="cpu"), **topics)

    def refusal(self, config: Config, *, worn: bool = False) -> str:
        """What the build passes that need no memory say against a start like this, or with `worn` against adapters
        then; empty: nothing. Asked once each.
        """
        key = str(config)
        if key not in self.starts:
            try:
                under = run(begin(config, Mesh.planned(config.parallel)), SHAPES)
                under.resources.close()
                self.starts[key] = "", obstacle(under)
            except ConfigError as problem:
                self.starts[key] = str(problem), ""
        started, adapters = self.starts[key]
        return started or (f"loras cannot be worn: {adapters}" if worn and adapters else "")

    def told(self, reason: str) -> str:
        """`reason` in words that do not name the model."""
        return re.sub(rf"(this )?\b{self.door.spec.family}\b", "this model", reason)


@dataclass(frozen=True)
class Feature:
    """Something that is switched on: for an engine by `topics` of its configuration or by `axes` of its ranks, for one
    request by what `give` puts beside the prompt, by `params` and by `ask`. `load` and `also` are what else it needs.
    """

    name: str
    about: str
    topics: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    give: Callable[[Stand, Prompt], Prompt] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    also: Callable[[Stand], None] | None = None


def from_text(stand: Stand, prompt: Prompt) -> Prompt:
    """The prompt alone."""
    return {name: prompt.get(name) for name in ("prompt", "negative_prompt")}


def with_picture(stand: Stand, prompt: Prompt) -> Prompt:
    """With the pictures that a test gives it, else with one."""
    given = next(
        (wish.asked for wish in stand.family.wishes if wish.images), {"images": [picture_of(photo(SIDE, SIDE))]}
    )
    kept = {name: given[name] for name in ("images", "mask", "pad") if name in given}
    return {**from_text(stand, prompt), **kept}


def with_video(stand: Stand, prompt: Prompt) -> Prompt:
    """With the video that a test gives it, else with one of five frames."""
    given = next((wish.asked for wish in stand.family.wishes if wish.video), {"videos": [clip_of(film(SIDE, SIDE, 5))]})
    return {**from_text(stand, prompt), **{name: given[name] for name in ("images", "videos", "mask") if name in given}}


def with_mask(stand: Stand, prompt: Prompt) -> Prompt:
    """With a picture or, where it lies over that, a video, and a mask over it."""
    if stand.door.limits.masks_videos:
        return with_video(stand, prompt)
    prompt = with_picture(stand, prompt)
    first = prompt["images"][0]
    return {**prompt, "mask": mask_of(halves(first.width, first.height))}


def with_pad(stand: Stand, prompt: Prompt) -> Prompt:
    """With a picture that is to become larger."""
    return {**with_picture(stand, prompt), "pad": [0, 16, 0, 0]}


def with_sound(stand: Stand, prompt: Prompt) -> Prompt:
    """With a sound to start from."""
    return {**prompt, "sounds": [chord(16000, 0.5, 2)]}


def guided(stand: Stand) -> None:
    """Some request must have branches that can be shared out."""
    asks = [Ask(wish.asked, wish.params) for wish in stand.family.wishes]
    if all(stand.door.make_request(ask, 0.0, 1).branches == ONLY_POSITIVE for ask in asks):
        raise Impossible("there is no guidance whose branches could be shared out")


def compared(stand: Stand) -> None:
    """`omnimuse parity` must have something to compare with."""
    if stand.family.apart:
        raise ConfigError(f"`omnimuse parity` says: {stand.family.apart}")


FEATURES = (
    Feature("text", "drawn from a prompt alone", give=from_text),
    Feature("picture in", "starts from pictures, or is shown them", give=with_picture),
    Feature("video in", "starts from a video", give=with_video),
    Feature("sound in", "starts from a sound", give=with_sound),
    Feature("mask", "a part of a picture, or of a video, is drawn anew, the rest is kept", give=with_mask),
    Feature("pad", "a picture goes on beyond its edges", give=with_pad),
    Feature("several", "several outputs of one prompt", params={"num_outputs_per_prompt": 3}),
    Feature("previews", "pictures of what is being drawn", ask={"previews": 1}),
    Feature("scheduler", "euler, heun, unipc or dpm++, and a shift, for one request", params={"scheduler": "heun"}),
    Feature("company", "different requests share forwards, and each gets what it gets alone within 1e-5"),
    Feature("invariant", "the same, to the bit", {"schedule": ScheduleConfig(tier="invariant")}),
    Feature("exact", "to the bit, every row in a forward of its own", {"schedule": ScheduleConfig(tier="exact")}),
    Feature("TeaCache", "steps that change little are skipped", {"cache": CacheConfig("teacache", 0.3)}),
    Feature("DBCache", "the blocks between the first and the last are skipped", {"cache": CacheConfig("dbcache", 0.3)}),
    Feature("int8", "weights of 8 bits (docs/quantization.md)", {"quantize": QuantConfig({"": "int8"})}),
    Feature("int4", "weights of 4 bits", {"quantize": QuantConfig({"": "int4"})}),
    Feature("LoRA", "adapters, other ones for each request", params={"loras": (Lora("style.safetensors"),)}),
    Feature("components", "networks take turns on the device", {"offload": OffloadConfig("components")}),
    Feature("layers", "blocks come in one at a time", {"offload": OffloadConfig("layers")}),
    Feature("compile", "compiled blocks", {"compile": CompileConfig("blocks")}),
    Feature("tensor", "ranks hold a part of each block's weights", axes={"tensor": 2}),
    Feature("ulysses", "ranks share a row's tokens by heads", axes={"ulysses": 2}),
    Feature("ring", "ranks share a row's tokens, and pass keys on", axes={"ring": 2}),
    Feature("shard", "ranks that share tokens keep blocks in parts", axes={"shard": 2}),
    Feature("pipe", "ranks hold some of the blocks each", axes={"pipe": 2}),
    Feature("cfg", "ranks evaluate a branch of the guidance each", axes={"cfg": 2}, also=guided),
    Feature("tiles", "pictures are decoded in tiles", {"decode": DecodeConfig(tiling=True)}),
    Feature("tiles on ranks", "ranks decode some of the tiles each", axes={"vae_tiles": 2}),
    Feature("parity", "`omnimuse parity` compares it with diffusers part by part", also=compared),
)
STANDING = ("FluxPipeline-dev", "StableAudioPipeline", "WanPipeline-2.1-I2V")
"""Families that are asked what goes together: the first of them that has both features."""
TOGETHER = tuple(feature for feature in FEATURES if feature.name not in ("text", "parity"))


@dataclass(frozen=True)
class Cell:
    """What is known of a feature of a family, or of two features: a word, and the reason or the test behind it."""

    word: str
    why: str = ""


def attempt(stand: Stand, features: Sequence[Feature]) -> Cell | None:
    """None where all of `features` at once are let in; else who says what against it."""
    topics: dict[str, Any] = {}
    for feature in features:
        for topic, value in feature.topics.items():
            if topics.setdefault(topic, value) != value:
                return Cell("impossible", "they are two values of one choice")
    try:
        for feature in features:
            if feature.also is not None:
                feature.also(stand)
        worn = any("loras" in feature.params for feature in features)
        if problem := stand.refusal(stand.config({**topics, "parallel": ranks(features)}), worn=worn):
            raise ConfigError(problem)
        stand.door.make_request(asked(stand, features), 0.0, 1)
    except Impossible as reason:
        return Cell("impossible", str(reason))
    except (ConfigError, RequestError) as reason:
        return Cell("refused", stand.told(str(reason)))
    return None


def ranks(features: Sequence[Feature]) -> ParallelConfig:
    """All axes of `features`; sharding follows the ranks that share tokens, tiles all of them."""
    axes: dict[str, Any] = {axis: count for feature in features for axis, count in feature.axes.items()}
    if "shard" in axes:
        if not {"ulysses", "ring"} & axes.keys():
            axes["ulysses"] = 2
        axes["shard"] = axes.get("ulysses", 1) * axes.get("ring", 1)
    if "vae_tiles" in axes:
        if axes.keys() == {"vae_tiles"}:
            axes["ulysses"] = 2
        axes["vae_tiles"] = prod(count for axis, count in axes.items() if axis not in ("shard", "vae_tiles"))
    return ParallelConfig(**axes)


def asked(stand: Stand, features: Sequence[Feature]) -> Ask:
    """The first request of the family's tests, with all of `features`."""
    wish: Wish = stand.family.wishes[0]
    prompt, params = dict(wish.asked), dict[str, Any]()
    for feature in features:
        prompt = prompt if feature.give is None else {**prompt, **feature.give(stand, prompt)}
        if feature.name == "text":
            prompt = from_text(stand, prompt)
        params.update(feature.params)
    others = {name: value for feature in features for name, value in feature.ask.items()}
    return Ask(prompt, replace(wish.params, **params), **others)


# -- what tests show ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A test, and what it says that it shows, of a family: `requests` are features that some request has."""

    test: str
    features: frozenset[str]
    requests: tuple[frozenset[str], ...]
    family: str

    def shows(self, wanted: Iterable[str]) -> bool:
        """Whether all of `wanted` are switched on at once."""
        left = frozenset(wanted) - self.features
        return not left or any(left <= request for request in self.requests)


def requests_of(family: str) -> tuple[frozenset[str], ...]:
    """What the requests of a family's tests have, each."""
    fields = {
        "images": "picture in",
        "video": "video in",
        "sound": "sound in",
        "mask": "mask",
        "masks": "mask",
        "pad": "pad",
    }
    [wishes] = [each.wishes for each in DRAWING if each.name == family]
    return tuple(
        frozenset(name for field, name in fields.items() if getattr(wish, field)) or frozenset(["text"])
        for wish in wishes
    )


def collected() -> list[Shown]:
    """Everything that the tests in `WHERE` say; none of them is run."""
    with TemporaryDirectory() as folder:
        told = Path(folder) / "shows.json"
        command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", f"--shows={told}", *WHERE]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"the tests cannot be collected:\n{done.stdout}{done.stderr}")
        marks = json.loads(told.read_text(encoding="utf-8"))
    known, names, found = {feature.name for feature in FEATURES}, {family.name for family in DRAWING}, []
    for test, features, besides in marks:
        families = besides.get("families", family_in(test))
        if wrong := [*(set(features) - known), *(set(families) - names)]:
            raise ConfigError(f"{test} shows {wrong}, which is neither in FEATURES nor a family")
        for family in families:
            requests = requests_of(family) if besides.get("wishes") else ()
            found.append(Shown(test, frozenset(features), requests, family))
    return found


def family_in(test: str) -> tuple[str, ...]:
    """The family in a test's id: the longest name that is a whole part of what stands in brackets."""
    parts = f"-{test.partition('[')[2].removesuffix(']')}-"
    found = [family.name for family in DRAWING if f"-{family.name}-" in parts]
    return (max(found, key=len),) if found else ()


def by_test(tests: Sequence[Shown], wanted: Sequence[str], families: Iterable[str]) -> Cell | None:
    """The test that shows all of `wanted` for one of `families`, if there is one: that with the fewest features."""
    among = set(families)
    found = [shown for shown in tests if shown.family in among and shown.shows(wanted)]
    best = min(found, key=lambda shown: (len(shown.features), "/parity/" not in shown.test, shown.test), default=None)
    return None if best is None else Cell("works", f"`{best.test.partition('[')[0]}`")


# -- the two tables ----------------------------------------------------------------------------------------------------


def of_family(stand: Stand, feature: Feature, stands: Sequence[Stand], tests: Sequence[Shown]) -> Cell:
    """Whether a family has a feature. Of those that share their code, one's test stands for the others: checkpoints of
    one pipeline, and for what an engine is started with, those of one network.
    """
    against = attempt(stand, [feature])
    if against is not None:
        return against
    family = stand.family
    if (cell := by_test(tests, [feature.name], [family.name])) is not None:
        return cell
    started = bool(feature.topics or feature.axes)
    kin = [
        other.family.name
        for other in stands
        if other.family.arch == family.arch or (started and other.networks == stand.networks)
    ]
    like = by_test(tests, [feature.name], kin)
    return Cell("let in") if like is None else Cell("as its kin", like.why)


def of_pair(stands: Sequence[Stand], pair: Sequence[Feature], tests: Sequence[Shown]) -> Cell:
    """Whether two features go together in a family that has both."""
    able = [stand for stand in stands if all(attempt(stand, [feature]) is None for feature in pair)]
    if not able:
        return Cell("impossible", "no model has both")
    against = attempt(able[0], pair)
    if against is not None:
        return against
    names = [feature.name for feature in pair]
    return by_test(tests, names, [family.name for family in DRAWING]) or Cell("let in")


@dataclass
class Reasons:
    """What is behind the cells of a table: tests, and why something is refused or impossible; numbered, each once."""

    known: dict[str, int] = field(default_factory=dict)

    def word(self, cell: Cell) -> str:
        """The word of a cell, with the number of what is behind it."""
        return f"{cell.word} {self.known.setdefault(cell.why, len(self.known) + 1)}" if cell.why else cell.word

    def told(self) -> str:
        """All of them, as a list."""
        return "".join(f"{number}. {why}\n" for why, number in self.known.items())


BEGIN = """# Features

Made by `make features` from what the code and its tests declare; do not change it by hand. Rows are tiny checkpoints
of every family, as the tests have them. Each is asked: a feature that its door or its start refuses is `refused`;
`impossible` is what it has nothing of. Everything else `works` where a test says that it shows it, `as its kin` where
that test has another checkpoint of the same pipeline or the same network, and is `let in` where there is no test. The
numbers lead to the test, or to what is said, below each table.

## What they are

"""
PAIRS = """
## Features with features

Whether two can be switched on at once, in the same words: `works` where a test has both. Each pair is asked of the
first of {standing} that has both.
"""


def page() -> str:
    """The whole text of `docs/features.md`."""
    tests = collected()
    with TemporaryDirectory() as home:
        stands = [Stand(family, family.build(Path(home) / family.name)) for family in DRAWING]
        cells = {
            (stand.family.name, feature.name): of_family(stand, feature, stands, tests)
            for stand in stands
            for feature in FEATURES
        }
        standing = [stand for stand in stands if stand.family.name in STANDING]
        standing.sort(key=lambda stand: STANDING.index(stand.family.name))
        pairs = {frozenset((a.name, b.name)): of_pair(standing, (a, b), tests) for a, b in combinations(TOGETHER, 2)}
    return "".join(
        [
            BEGIN,
            table(("feature", "what it is"), [(each.name, each.about) for each in FEATURES]),
            families(cells),
            PAIRS.format(standing=", ".join(f"`{name}`" for name in STANDING)),
            together(pairs),
        ]
    )


def families(cells: Mapping[tuple[str, str], Cell]) -> str:
    """Features by families."""
    reasons, head = Reasons(), ["", *(feature.name for feature in FEATURES)]
    rows = [
        [f"`{family.name}`", *(reasons.word(cells[family.name, feature.name]) for feature in FEATURES)]
        for family in DRAWING
    ]
    return f"\n## Features of families\n\n{table(head, rows)}\n{reasons.told()}"


def together(pairs: Mapping[frozenset[str], Cell]) -> str:
    """Features by features."""
    reasons, names = Reasons(), [feature.name for feature in TOGETHER]
    rows = []
    for at, name in enumerate(names):
        found = [reasons.word(pairs[frozenset((name, other))]) for other in names[:at]]
        rows.append([name, *found, *[""] * (len(names) - at - 1)])
    return f"\n{table(['', *names[:-1]], rows)}\n{reasons.told()}"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
