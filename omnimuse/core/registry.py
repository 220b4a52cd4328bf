"""Finds a family's spec and pipeline by the architecture a checkpoint names.

The table itself is data in `models/__init__.py` (one line per family); this module turns its lines into specs
(torch-free) and pipeline classes (imports torch) when asked. It knows no model's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from omnimuse.core.errors import ModelError
from omnimuse.core.spec import Spec


class Registry:
    """Architectures by name; `table` maps the class name that a checkpoint says to the family's package."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = dict(table)

    def spec(self, arch: str) -> Spec:
        """The spec of the family that has the pipeline `arch`; ModelError names the closest supported one otherwise."""
        spec = import_module(self._package(arch) + ".spec").SPEC
        assert isinstance(spec, Spec)
        if arch != spec.arch and not _among(arch, spec.also):
            raise ModelError(
                f"{self._package(arch)} is in the table of models for {arch!r}, but its spec has arch={spec.arch!r}; "
                "make the line in models/__init__.py and the spec say the same"
            )
        return spec

    def covers(self, arch: str) -> bool:
        """Whether some family has the pipeline `arch`."""
        return arch in self.table or any(_among(arch, spec.also) for spec in self.specs())

    def pipeline(self, arch: str) -> Any:
        """The pipeline class of `arch`. Imports torch."""
        return import_module(self._package(arch) + ".pipeline").PIPELINE

    def specs(self) -> list[Spec]:
        """Every supported family's spec, in table order."""
        return [self.spec(arch) for arch in self.table]

    def _package(self, arch: str) -> str:
        if arch in self.table:
            return self.table[arch]
        for spec in self.specs():
            if _among(arch, spec.also):
                return self.table[spec.arch]
        near = get_close_matches(arch, self.table, n=1, cutoff=0.4)
        hint = f"; the closest supported one is {near[0]}" if near else ""
        raise ModelError(f"the architecture {arch} is not supported{hint}. `omnimuse models` lists what is")


def _among(arch: str, also: Sequence[str]) -> bool:
    return any(fnmatchcase(arch, each) for each in also)
