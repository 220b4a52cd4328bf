"""The names of a guide as data: which are here and what they do, and which are refused and why, read from a file.

Each door has such a file (`names.toml`). `docs/compat.md` shows them (`tools/compat_page.py`), modules that are asked
for a refused name say the reason, and tests go through all of them. No torch.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

TESTS = "tests/compat/test_"


@dataclass(frozen=True)
class Known:
    """A name that is here: in which module, or that a pipeline or a network has; where it is documented, what it does,
    and the test of that.
    """

    module: str
    name: str
    where: str
    does: str
    test: str


@dataclass(frozen=True)
class Refused:
    """A name that is not, and why; `*` are all names of a module."""

    module: str
    name: str
    where: str
    why: str


@dataclass(frozen=True)
class Argument:
    """An argument that a document gives something of a module: `owner`, or a method of it."""

    module: str
    owner: str
    name: str
    where: str
    does: str


@dataclass(frozen=True)
class Names:
    """All of one guide."""

    known: tuple[Known, ...]
    refused: tuple[Refused, ...]
    arguments: tuple[Argument, ...]
    declared: tuple[Known, ...] = ()

    def why(self, module: str, name: str = "") -> str:
        """Why `name` of `module`, or the module, is not here, as the end of a sentence; empty where nothing is said."""
        if name:
            rows = [row for row in self.refused if row.module == module and row.name in (name, "*")]
        else:  # who imports a module is asked for the packages around it first
            rows = [row for row in self.refused if f"{row.module}.".startswith(f"{module}.")]
        return next((f": {row.why}" for row in rows), "")


def names_in(path: Path) -> Names:
    """What the file at `path` has: in each row several names of one module may stand, with blanks between."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    known, declared = (
        tuple(
            Known(module, name, where, does, f"{TESTS}{test.replace('::', '.py::test_')}")
            for module, names, where, does, test in content.get(rows, ())
            for name in names.split()
        )
        for rows in ("known", "declared")
    )
    refused = (
        Refused(module, name, where, why) for module, names, where, why in content["refused"] for name in names.split()
    )
    arguments = (
        Argument(module, owner, name, where, does)
        for module, owner, names, where, does in content.get("arguments", ())
        for name in names.split()
    )
    return Names(known, tuple(refused), tuple(arguments), declared)
