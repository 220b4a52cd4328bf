"""Rules that turn a checkpoint's tensor names into those of our networks: `Rename`, `Fuse`, `Drop` and `Translate`.

A family's `weights.py` lists them, `weights.load_weights` applies them. Plain data and plain functions; no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rename:
    """Replaces every match of the regular expression `pattern` in the full name (groups: `\\1`)."""

    pattern: str
    replacement: str


@dataclass(frozen=True)
class Fuse:
    """Concatenates tensors along `dim`: names that end in one of `parts` become parts, in that order, of `into`.

    A part matches whole dotted pieces at the end of a name; what stands before it is kept.
    """

    parts: tuple[str, ...]
    into: str
    dim: int = 0


def joined(
    site: str, parts: Sequence[str], into: str, *, kinds: Sequence[str] = ("weight", "bias")
) -> tuple[Fuse, ...]:
    """The `Fuse`s of layers that read the same tokens, weights and biases: `site` has a star where one of `parts`
    (of a string, a letter) tells them apart, and together they are called `into`.
    """
    return tuple(Fuse(tuple(f"{site.replace('*', part)}.{kind}" for part in parts), f"{into}.{kind}") for kind in kinds)


@dataclass(frozen=True)
class Drop:
    """Leaves out tensors in whose name the regular expression `pattern` is found: our network has no use for them."""

    pattern: str


@dataclass(frozen=True)
class Translate:
    """Asks `name` for every name: the answer takes its place, and what has an empty one is left out."""

    name: Callable[[str], str]


Rule = Rename | Fuse | Drop | Translate


@dataclass(frozen=True)
class Alias:
    """What adapters call a layer, whole, by the regular expression `pattern`, and what the checkpoint calls it.

    Several `names`: its outputs are theirs, in that order. A dot in `pattern` stands for an underscore as well, as some
    trainers write names (groups: `\\1`). `turned`: where it makes a shift and a scale for every input and nothing else,
    the checkpoint has the scale first.
    """

    pattern: str
    names: tuple[str, ...]
    turned: bool = False

    def of(self, name: str) -> tuple[str, ...]:
        """The checkpoint's names for `name`; none if this is not about it."""
        match = re.fullmatch(self.pattern.replace(r"\.", "[._]"), name)
        return () if match is None else tuple(match.expand(each) for each in self.names)


@dataclass(frozen=True)
class Target:
    """Where a tensor goes: the whole of `name`, or part number `part` of `fuse` (whose siblings share `prefix`).

    An empty `name`: nowhere.
    """

    name: str
    fuse: Fuse | None = None
    part: int = 0
    prefix: str = ""


def apply_rules(name: str, rules: Sequence[Rule]) -> Target:
    """Where the tensor called `name` in the file goes. Rules act in order, each on what the ones before it made."""
    target = Target(name)
    for rule in rules:
        if isinstance(rule, Rename):
            renamed = re.sub(rule.pattern, rule.replacement, target.name)
            target = Target(renamed, target.fuse, target.part, target.prefix)
        elif isinstance(rule, Translate):
            target = Target(rule.name(target.name), target.fuse, target.part, target.prefix)
            if not target.name:
                return target
        elif isinstance(rule, Drop):
            if re.search(rule.pattern, target.name):
                return Target("")
        elif target.fuse is None:
            target = _fused(target, rule)
    return target


def _fused(target: Target, fuse: Fuse) -> Target:
    for number, part in enumerate(fuse.parts):
        if target.name == part or target.name.endswith("." + part.removeprefix(".")):
            prefix = target.name[: len(target.name) - len(part)]
            return Target(prefix + fuse.into, fuse, number, prefix)
    return target
