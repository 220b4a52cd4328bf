"""`make features`: what every family can be asked for and started with, and what goes together, as `docs/features.md`.

Nothing of it is written by hand. A cell is what a door or the build passes say to the tiny checkpoint of a family
(`tests/checkpoints`), and, where they let it in, a test that says by its mark that it shows it (`tests/shows.py`). A
feature is one line in `feature_list.py`. A test makes the page again and compares.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omnimuse.core.config import CacheConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError, RequestError
from omnimuse.core.params import make_params
from omnimuse.core.request import Ask
from omnimuse.deploy.pools import NO_ENGINE
from omnimuse.worker.part import parts
from tests.checkpoints.families import ALLROUNDERS, FAMILIES, WIDER
from tests.checkpoints.wishes import Family, Wish
from tests.compat.guests import Guest
from tools.feature_guests import ASKED_OF_GUESTS, KINDS, VISITING, Visit
from tools.feature_list import (
    ATTENTION,
    FEATURES,
    SKIPPING,
    STANDING,
    STANDING_TOLD,
    TELLING,
    TOLD,
    Feature,
    Impossible,
    Stand,
    Teller,
    Untried,
    from_text,
    measured,
)
from tools.models_page import table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "features.md"
WHERE = (
    "tests/invariants",
    "tests/parity",
    "tests/dist",
    "tests/unit/models/talk_and_draw",
    "tests/server/test_calling.py",
    "tests/server/test_calling_shown.py",
    "tests/compat/test_features.py",
)
DRAWING: tuple[Family, ...] = (*FAMILIES, *ALLROUNDERS)
ASKED: tuple[Family | Teller | Guest, ...] = (*DRAWING, *TELLING, *VISITING)
KNOWN = {feature.name: feature for feature in (*TOLD, *FEATURES, *ATTENTION)}
WIDE = {wide.name: each.name for wide in WIDER for each in ALLROUNDERS if each.arch == wide.arch}
"""Checkpoints that differ from a family's own in nothing but sizes: what tests of them show is shown of that family."""


@dataclass(frozen=True)
class Cell:
    """What is known of a feature of a family, or of two features: a word, and the reason or the test behind it."""

    word: str
    why: str = ""


def attempt(stand: Stand, features: Sequence[Feature]) -> Cell | None:
    """None where all of `features` at once are let in; else who says what against it."""
    try:
        stand = packed(stand, features)
        for feature in features:
            if feature.also is not None:
                feature.also(stand)
        worn = any("loras" in feature.params for feature in features)
        config = stand.config({**topics(features), "parallel": ranks(features)})
        if problem := stand.refusal(config, worn=worn):
            raise ConfigError(problem)
        if any(feature.pooled for feature in features):
            if any(feature.rests for feature in features):
                raise ConfigError(NO_ENGINE)
            parts(replace(config, parallel=ParallelConfig(), deploy=stand.pools), stand.door.spec)
        stand.door.make_request(asked(stand, features), 0.0, 1)
    except Impossible as reason:
        return Cell("impossible", str(reason))
    except Untried as reason:
        return Cell("not tried", str(reason))
    except (ConfigError, ModelError, RequestError) as reason:
        return Cell("refused", stand.told(str(reason)))
    return None


def topics(features: Sequence[Feature]) -> dict[str, Any]:
    """With what an engine with all of `features` is started; Impossible where two choose one thing differently."""
    chosen, cache = joined(each.topics for each in features), joined(each.cache for each in features)
    return joined([chosen, {"cache": CacheConfig(**{**SKIPPING, **cache})}]) if cache else chosen


def packed(stand: Stand, features: Sequence[Feature]) -> Stand:
    """`stand` with files as `features` have them; Impossible where two have them differently."""
    files = joined({"files": feature.files} for feature in features if feature.files)
    return stand.packed(files["files"]) if files else stand


def joined(choices: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All of these in one."""
    chosen: dict[str, Any] = {}
    for choice in choices:
        for name, value in choice.items():
            if chosen.setdefault(name, value) != value:
                raise Impossible("they are two values of one choice")
    return chosen


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
    return Ask(prompt, make_params(wish.params, params), **others)


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
    [wishes] = [each.wishes for each in ASKED if each.name == family]
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
    names, found = {family.name for family in ASKED}, list[Shown]()
    for test, features, besides in marks:
        families = [WIDE.get(name, name) for name in besides.get("families", family_in(test))]
        if wrong := [*(set(features) - KNOWN.keys()), *(set(families) - names)]:
            raise ConfigError(f"{test} shows {wrong}, which is no feature or no family")
        if pair := contradictions(test, features):
            raise ConfigError(f"{test} cannot show {', '.join(features)}: {' and '.join(pair)} are never on at once")
        for family in families:
            requests = requests_of(family) if besides.get("wishes") else ()
            found.append(Shown(test, frozenset(features), requests, family))
    return found


def contradictions(test: str, features: Sequence[str]) -> tuple[str, ...]:
    """Two features that cannot be on at once, of those that a test is marked with and those that its id names."""
    parts = f"-{test.partition('[')[2].removesuffix(']')}-"
    named = [name for name in KNOWN if f"-{name}-" in parts]
    whole = [name for name in named if not any(f"-{name}-" in f"-{other}-" for other in named if other != name)]
    for pair in combinations(dict.fromkeys((*features, *whole)), 2):
        try:
            topics([KNOWN[name] for name in pair])
        except Impossible:
            return pair
    return ()


def family_in(test: str) -> tuple[str, ...]:
    """The family in a test's id: the longest name that is a whole part of what stands in brackets."""
    parts = f"-{test.partition('[')[2].removesuffix(']')}-"
    found = [family.name for family in ASKED if f"-{family.name}-" in parts]
    return (max(found, key=len),) if found else ()


def by_test(tests: Sequence[Shown], wanted: Sequence[str], families: Iterable[str]) -> Cell:
    """The test that shows all of `wanted` for one of `families`: that with the fewest features. `untested` if there is
    none, which is a word that a test refuses.
    """
    among = set(families)
    found = [shown for shown in tests if shown.family in among and shown.shows(wanted)]
    best = min(found, key=lambda shown: (len(shown.features), "/parity/" not in shown.test, shown.test), default=None)
    return Cell("untested") if best is None else Cell("works", f"`{best.test.partition('[')[0]}`")


# -- the tables --------------------------------------------------------------------------------------------------------


def of_family(stand: Stand, feature: Feature, tests: Sequence[Shown]) -> Cell:
    """Whether a family has a feature."""
    return attempt(stand, [feature]) or by_test(tests, [feature.name], [stand.family.name])


def of_pair(
    able: Mapping[str, Sequence[Stand]], pair: tuple[Feature, Feature], tests: Sequence[Shown], standing: Sequence[str]
) -> Cell:
    """Whether two features go together in one of `standing` that are `able` to have either, or else in the first of all
    that are. Where none of those lets both in, the first says why.
    """
    one, other = (able[feature.name] for feature in pair)
    both = [stand for stand in one if stand in other]
    if not both:
        return Cell("impossible", "no model has both")
    asked = [stand for stand in both if stand.family.name in standing] or both[:1]
    against = attempt(asked[0], pair)
    if against is not None and all(attempt(stand, pair) for stand in asked[1:]):
        return against
    families = {stand.family.name for stands in able.values() for stand in stands}
    return by_test(tests, [feature.name for feature in pair], families)


@dataclass
class Reasons:
    """What is behind the cells of a table: tests, and why anything else is said; numbered, each once."""

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
`impossible` is what it has nothing of, and `not tried` what tests have not what they would need for. Everything else
`works`, as a test of that very checkpoint shows, or of one that differs from it in sizes alone. Ranks beside pools are
those of each pool (docs/deploy.md). The numbers lead to the test, or to what is said, below each table.

## What they are

"""
GUESTS = """
## Features of guests

Pipelines from elsewhere ([compat.md](compat.md)), one of each kind, on a CPU in float32. Each is asked by all that a
start does, as what its networks are is known once they are there. No pairs are asked of them; three draw with an
adapter, `int8` and `DBCache` in company, with blocks that come in one at a time or on two ranks, what they draw with
all of that alone, and something else without any (`tests/compat/test_features.py`).

"""
PAIRS = """
## Features with features

Whether two can be switched on at once, in the same words: `works` where a test has both. Each pair is asked of those
models named above a table that have both, or else of the first of all that has; it is refused where none of them lets
both in.
"""


def page() -> str:
    """The whole text of `docs/features.md`."""
    tests = collected()
    with TemporaryDirectory() as home:
        drawing, telling = (
            [Stand(family, family.build(Path(home) / family.name)) for family in asked] for asked in (DRAWING, TELLING)
        )
        visiting = [Visit(guest, guest.made(Path(home) / guest.name)) for guest in VISITING]
        for stand in (*drawing, *telling, *visiting):
            measured(stand.folder)
        drawn, told = families(drawing, FEATURES, tests), families(telling, TOLD, tests)
        attending, visited = families(drawing, ATTENTION, tests), families(visiting, ASKED_OF_GUESTS, tests)
        paired = (*FEATURES, *ATTENTION)
        pairs = [together(drawing, paired, STANDING, tests), together(telling, TOLD, STANDING_TOLD, tests)]
    return "".join(
        [
            BEGIN,
            table(
                ("feature", "what it is"), {each.name: each.about for each in (*FEATURES, *ATTENTION, *TOLD)}.items()
            ),
            f"\n## Features of families that draw\n\n{drawn}",
            f"\n## Attention of families that draw\n\nOn a CPU, in float32.\n\n{attending}",
            f"\n## Features of models that write and speak\n\n{told}",
            GUESTS,
            f"{table(('', 'what it is'), ((f'`{name}`', kind) for name, kind in KINDS.items()))}\n{visited}",
            PAIRS,
            f"\n### Of families that draw\n\n{pairs[0]}",
            f"\n### Of models that write and speak\n\n{pairs[1]}",
        ]
    )


def families(stands: Sequence[Stand], features: Sequence[Feature], tests: Sequence[Shown]) -> str:
    """Features by families."""
    reasons, head = Reasons(), ["", *(feature.name for feature in features)]
    rows = [
        [f"`{stand.family.name}`", *(reasons.word(of_family(stand, each, tests)) for each in features)]
        for stand in stands
    ]
    return f"{table(head, rows)}\n{reasons.told()}"


def together(
    stands: Sequence[Stand], features: Sequence[Feature], standing: Sequence[str], tests: Sequence[Shown]
) -> str:
    """Features by features, of which some have no row; those of `standing` are asked first."""
    stands = sorted(stands, key=lambda stand: (*standing, stand.family.name).index(stand.family.name))
    paired = [feature for feature in features if feature.paired]
    able = {each.name: [stand for stand in stands if attempt(stand, [each]) is None] for each in paired}
    reasons, rows = Reasons(), []
    for at, each in enumerate(paired):
        found = [reasons.word(of_pair(able, (other, each), tests, standing)) for other in paired[:at]]
        rows.append([each.name, *found, *[""] * (len(paired) - at - 1)])
    asked = ", ".join(f"`{name}`" for name in standing)
    alone = ", ".join(feature.name for feature in features if not feature.paired)
    head = f"Asked first are {asked}. No pairs are asked with {alone}.\n"
    return f"{head}\n{table(['', *(each.name for each in paired[:-1])], rows)}\n{reasons.told()}"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
