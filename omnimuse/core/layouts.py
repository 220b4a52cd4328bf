"""Folders of models that are neither in the layout of diffusers nor in that of transformers: which files make them up.

The table of models says how the families lay theirs out; the loader looks here. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Piece:
    """A component of such a folder: its class, the file of its weights (empty: it has none), and its configuration.

    That is what is `known` of it without a file, and over it what is in `files`: by the name of a file the key that
    holds its contents (empty: they stand for themselves). A file that is not there says nothing.
    """

    kind: str
    weights: str = ""
    known: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """A folder that holds all files of `marks` is a model of the class `arch`, with these `pieces` by name."""

    arch: str
    marks: tuple[str, ...]
    pieces: Mapping[str, Piece]


LAYOUTS: list[Files] = []
"""Those that are known; filled when the table of models is imported."""


def laid_out(names: Collection[str]) -> Files | None:
    """What a folder with files of these `names` is, if it is in one of the `LAYOUTS`."""
    return next((files for files in LAYOUTS if set(files.marks) <= set(names)), None)
