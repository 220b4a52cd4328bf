"""What a pipeline class of the contract says of itself, read from its source: no torch is imported for it.

A front process must know what a model takes before anything heavy starts. What a base class from elsewhere brings is
not seen here; `register` can say it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from omnimuse.compat.contract.entries import Entry
from omnimuse.core.errors import ModelError

STEPS = ("prepare_encode", "denoise_step", "step_scheduler", "post_decode")
"""The four methods by which a pipeline gives its loop away."""


@dataclass(frozen=True)
class ClassSource:
    """A pipeline class as its source has it, with the names that stand in all files of its folder."""

    name: str
    methods: frozenset[str]
    bases: frozenset[str]
    words: frozenset[str]

    @property
    def steps(self) -> bool:
        """Whether it has the four methods."""
        return not self.lacking

    @property
    def lacking(self) -> list[str]:
        """Which of the four methods it has not."""
        return [name for name in STEPS if name not in self.methods]

    @property
    def takes_pictures(self) -> bool:
        """Whether it is marked as one that is shown pictures."""
        return "SupportImageInput" in self.bases

    @property
    def takes_sounds(self) -> bool:
        """Whether it is marked as one that is given sounds."""
        return "SupportAudioInput" in self.bases

    @property
    def gives_sounds(self) -> bool:
        """Whether it is marked as one that makes sounds."""
        return "SupportAudioOutput" in self.bases

    def reads(self, word: str) -> bool:
        """Whether `word` stands there as an attribute that is read, or as a string."""
        return word in self.words


def read_class(entry: Entry) -> ClassSource:
    """The class that `entry` names; ModelError where its file or the class is not there."""
    path = _path(entry)
    files = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(path.parent.glob("*.py"))}
    found = _Classes(files[path]).seen(entry.name)
    if found is None:
        raise ModelError(f"{path} has no class {entry.name}, which is registered for {entry.arch}; correct one of them")
    words = frozenset(word for tree in files.values() for word in _words(tree))
    return ClassSource(entry.name, found[0], found[1], words)


class _Classes:
    """The classes of one file, and what they inherit from each other."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree

    @cached_property
    def nodes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    def seen(self, name: str) -> tuple[frozenset[str], frozenset[str]] | None:
        """Methods and bases of that class, those of its bases in this file included."""
        node = self.nodes.get(name)
        if node is None:
            return None
        methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for base in sorted(bases):
            inherited = self.seen(base) if base != name else None
            if inherited is not None:
                methods, bases = methods | inherited[0], bases | inherited[1]
        return frozenset(methods), frozenset(bases)


def _path(entry: Entry) -> Path:
    """The file of the module, found from that of its outermost package: those between import torch when imported."""
    top, *parts = entry.module.split(".")
    found = find_spec(top)
    if found is not None and not parts and found.origin:
        return Path(found.origin)
    for root in (found.submodule_search_locations or ()) if found is not None else ():
        for path in (Path(root, *parts).with_suffix(".py"), Path(root, *parts, "__init__.py")):
            if path.is_file():
                return path
    raise ModelError(f"{entry.module}, which is registered for {entry.arch}, is not there; correct its name")


def _words(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Load()):
                found.add(name)
            case ast.Constant(value=str(name)) if name.isidentifier():
                found.add(name)
    return found
