"""Every registered pipeline: what the modules beside this one declare as their `FAMILIES`.

`tests/invariants` and `tests/parity` run over them; a test refuses a registered architecture without one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import tests.checkpoints
from omnimuse.models import REGISTRY
from tests.checkpoints.wishes import Answerer, Family, Speaker, Writer

_MODULES = sorted(module.name for module in pkgutil.iter_modules(tests.checkpoints.__path__))
_DECLARING = [name for name in _MODULES if not name.startswith("test_") and name not in ("conftest", "families")]

WRITERS: tuple[Writer, ...] = tuple(
    writer for name in _DECLARING for writer in getattr(import_module(f"tests.checkpoints.{name}"), "WRITERS", ())
)
"""Those that write text, which have invariants of their own."""

SPEAKERS: tuple[Speaker, ...] = tuple(
    speaker for name in _DECLARING for speaker in getattr(import_module(f"tests.checkpoints.{name}"), "SPEAKERS", ())
)
"""Those that speak, likewise."""

ANSWERERS: tuple[Answerer, ...] = tuple(
    each for name in _DECLARING for each in getattr(import_module(f"tests.checkpoints.{name}"), "ANSWERERS", ())
)
"""Those that write and speak at once, likewise."""

ALLROUNDERS: tuple[Family, ...] = tuple(
    family for name in _DECLARING for family in getattr(import_module(f"tests.checkpoints.{name}"), "ALLROUNDERS", ())
)
"""Those that draw and write with one network, which cannot be given all that others are that draw."""

WIDER: tuple[Family, ...] = tuple(
    family for name in _DECLARING for family in getattr(import_module(f"tests.checkpoints.{name}"), "WIDER", ())
)
"""The same with as many heads and layers as ranks share out, of which there is no reference."""

FAMILIES: tuple[Family, ...] = tuple(
    family for name in _DECLARING for family in getattr(import_module(f"tests.checkpoints.{name}"), "FAMILIES", ())
)


def _network(family: Family) -> frozenset[str]:
    """Where the code of what it evaluates at every step is."""
    components = REGISTRY.spec(family.arch).components.items()
    return frozenset(each.network for name, each in components if each.network and name.startswith("transformer"))


def _one_of_each_network() -> Iterator[Family]:
    whole = [family for family in FAMILIES if family.kind in ("", "dev", "2.1", "3.5-medium")]
    known = set[frozenset[str]]()
    for family in (*whole, *FAMILIES):
        if (network := _network(family)) not in known:
            known.add(network)
            yield family


NETWORKS: tuple[Family, ...] = tuple(_one_of_each_network())
"""One checkpoint of every network: for what takes long and depends on nothing but the code of its blocks."""
BLOCKS: tuple[Family, ...] = (
    *NETWORKS,
    *(family for family in FAMILIES if family.kind in ("2.1-I2V", "5B")),
    *ALLROUNDERS,
)
"""The same, those that have blocks which the first of their network does not have, and blocks that read, too."""

DRAWING: tuple[Family, ...] = (*FAMILIES, *ALLROUNDERS, *WIDER)
"""All that draw, whatever they do besides."""
SHARING: tuple[Family, ...] = (*FAMILIES, *WIDER)
"""Those of them that ranks can share."""
