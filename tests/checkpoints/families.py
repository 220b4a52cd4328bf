"""Every registered pipeline: what the modules beside this one declare as their `FAMILIES`.

`tests/invariants` and `tests/parity` run over them; a test refuses a registered architecture without one.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

import tests.checkpoints
from tests.checkpoints.wishes import Family, Writer

_MODULES = sorted(module.name for module in pkgutil.iter_modules(tests.checkpoints.__path__))
_DECLARING = [name for name in _MODULES if not name.startswith("test_") and name not in ("conftest", "families")]

WRITERS: tuple[Writer, ...] = tuple(
    writer for name in _DECLARING for writer in getattr(import_module(f"tests.checkpoints.{name}"), "WRITERS", ())
)
"""Those that write text, which have invariants of their own."""

FAMILIES: tuple[Family, ...] = tuple(
    family for name in _DECLARING for family in getattr(import_module(f"tests.checkpoints.{name}"), "FAMILIES", ())
)
