"""Which published checkpoint a folder is, by what it is called and by where it lies; and what it says it was taught.

Called by `worker/find.py`. A family's `Spec` decides with these names, and with what the configurations say, which of
its variants this is. Reads small files only; no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Named
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.files import read_json
from omnimuse.loader.resolve import Folder

TAUGHT = "training.json"
"""The file in which `tools/train_shapes` says what a checkpoint was trained on."""

NAME = "_name_or_path"
"""Where the configurations of libraries say of what published checkpoint they are."""

SHORTEST, NEAR, MOST = 4, 0.8, 100
"""Letters of a word that may be a known one misspelt, how much of both is to be alike, and how many are looked at."""

_CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")


def names_of(folder: Folder, checkpoint: Checkpoint) -> list[Named]:
    """Every name that tells what `folder` is, the surest first."""
    given = Path(folder.id).expanduser()
    places = [Path(folder.id).expanduser(), folder.path] if folder.source == "local" else [folder.path]
    found = [] if folder.source == "local" else [Named(folder.id, "that is its id")]
    for place in places:
        for part in reversed(place.parts):
            if match := _CACHED.fullmatch(part):
                found.append(Named(f"{match['owner']}/{match['name']}", "it lies so in a cache of the hub"))
    for where, config in checkpoint.sources():
        if isinstance(name := config.get(NAME), str) and name:
            found.append(Named(name, f"{NAME} in {where} says so"))
    if folder.source == "local":
        found += [Named(name, "its folder is called so") for name in dict.fromkeys([given.name, folder.path.name])]
    return [name for name in found if name.id]


def write_name(index: Path, published: str) -> None:
    """Have `index` say that its folder, which is called otherwise, is taken for that one; not if it names one."""
    if published and index.is_file() and not read_json(index).get(NAME):
        index.write_text(json.dumps({**read_json(index), NAME: published}, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Taught:
    """What a checkpoint was trained on, where it says so: its defaults, its words by topic, its only size in pixels and
    its only length in frames.
    """

    defaults: DiffusionParams
    words: Mapping[str, tuple[str, ...]]
    side: int | None
    frames: int | None = None

    def doubts(self, prompt: str, params: DiffusionParams) -> list[str]:
        """Why this request, though legal, may not give what a person hopes for; `params` may be incomplete."""
        doubts = []
        known = [word for words in self.words.values() for word in words]
        forms = [form for word in known for form in (word, word + "s", word + "es")]
        likely = [form for word in known for form in (word, word + "s")]
        said = dict.fromkeys(re.findall(r"\w+", prompt.casefold()))
        if known and not said.keys() & set(forms):
            doubts.append(f"the prompt has none of the words that this model knows; it draws {self.draws}")
        for word in [word for word in said if word not in forms][:MOST]:
            if len(word) >= SHORTEST and (near := get_close_matches(word, likely, n=1, cutoff=NEAR)):
                doubts.append(f"this model does not know the word {word!r:.40}; did you mean {near[0]!r}?")
        odd = [side for side in (params.width, params.height) if side not in (None, self.side)]
        if self.side and odd:
            doubts.append(
                f"this model learned from pictures of {self.side}x{self.side} only; at other sizes it draws badly"
            )
        if self.frames and params.num_frames not in (None, self.frames):
            doubts.append(f"this model learned from videos of {self.frames} frames only; it draws others badly")
        return doubts

    @property
    def draws(self) -> str:
        """Its words as a phrase."""
        return "; ".join(f"{topic}: {', '.join(words)}" for topic, words in self.words.items())


def taught(checkpoint: Checkpoint) -> Taught | None:
    """What the checkpoint says it was trained on; None for one that says nothing of the kind."""
    path = checkpoint.folder / TAUGHT
    if not path.is_file():
        return None
    content = read_json(path)
    known = {part.name for part in fields(DiffusionParams)}
    defaults, words = content.get("defaults"), content.get("words")
    side, frames = (each if isinstance(each := content.get(name), int) else None for name in ("resolution", "frames"))
    if not isinstance(defaults, Mapping) or not defaults.keys() <= known:
        return None  # a file of somebody else's by the same name
    return Taught(DiffusionParams(**defaults), _words(words), side, frames)


def _words(given: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, Mapping):
        return {}
    return {str(topic): tuple(map(str, words)) for topic, words in given.items() if isinstance(words, list)}
