"""What installed packages bring, by the group of entry points in which each names it (examples/plugin). No torch.

A package is imported only when what it brings is asked for by its name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from omnimuse.core.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

FAMILIES = "omnimuse.families"
"""Packages with pipelines of the contract (docs/compat.md)."""
ATTENTION = "omnimuse.attention"
"""Attention backends, by the name that a configuration has for them."""
CACHES = "omnimuse.caches"
"""Kinds of step caches, by the name that a choice begins with: policies behind the contract in `cache/policies.py`."""
SOLVERS = "omnimuse.solvers"
"""Solvers, by the class name of the scheduler in a checkpoint that they stand for."""

CONNECTORS = "omnimuse.connectors"
"""What carries requests between pools, by the name that a deploy file has for it (`deploy/connectors.py`)."""


def brought(group: str, taken: Collection[str] = ()) -> dict[str, EntryPoint]:
    """What packages bring in that group, by name; ConfigError for a name of ours, or one that two packages have."""
    from importlib.metadata import entry_points  # a quarter of what importing this package would take

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.get(point.name)
        if point.name in taken or (other is not None and other.value != point.value):
            whose = "omnimuse's own" if other is None else f"that of {other.value}"
            raise ConfigError(
                f"{point.value} is named {point.name!r} in the entry points {group}, which is {whose}; rename it there"
            )
        found[point.name] = point
    return found


def loaded(point: EntryPoint) -> Any:
    """The thing itself; ConfigError where its package does not have it."""
    try:
        return point.load()
    except (ImportError, AttributeError) as problem:
        raise ConfigError(
            f"{point.value}, which the entry points {point.group} name {point.name!r}, cannot be imported ({problem}); "
            "correct its package"
        ) from problem
