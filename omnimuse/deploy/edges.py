"""Edges that files of another engine say: a request goes through stages in their order, so they have to say so, too.

Ours come from what stages read and write; what a file says of them is checked, and changes nothing. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omnimuse.core.errors import ConfigError

ENDS = (("input_connectors", "from"), ("output_connectors", "to"))
"""Keys of a stage that say with whom it is connected, and how the names below them begin."""


def check_edges(edges: Any, count: int, where: str) -> None:
    """ConfigError unless `edges`, if there are any, go from earlier stages to later ones and reach all `count`."""
    if edges is None:
        return
    kept = "; leave `edges` out: they come from what stages read and write"
    if not isinstance(edges, list) or not all(isinstance(edge, dict) for edge in edges):
        raise ConfigError(f"{where}edges={edges!r} is no list of mappings; write `- {{from: 0, to: 1}}`{kept}")
    reached = {0}
    for edge in edges:
        ends = [edge.get(end) for end in ("from", "to")]
        for end, stage in zip(("from", "to"), ends, strict=True):
            if type(stage) is not int or not 0 <= stage < count:
                raise ConfigError(f"{where}edges: {end}={stage!r} is no stage; the stages are 0 to {count - 1}{kept}")
        if ends[0] >= ends[1]:
            raise ConfigError(
                f"{where}edges: from {ends[0]} to {ends[1]} goes back, and a request goes through stages in their "
                f"order{kept}"
            )
        reached.add(ends[1])
    if lost := [stage for stage in range(count) if stage not in reached]:
        raise ConfigError(f"{where}edges: none goes to stage {lost[0]}, which would have nothing to do{kept}")


def check_ends(entry: Mapping[str, Any], number: int, entries: Sequence[Mapping[str, Any]], where: str) -> None:
    """ConfigError unless the connectors of stage `number` are with stages that are there, before and behind it, and
    these say the same of it.
    """
    for key, begins in ENDS:
        for name, connector in _ends(entry, key, where).items():
            found = re.fullmatch(rf"{begins}_stage_(\d+)", str(name))
            if found is None:
                raise ConfigError(f"{where}{key}: {name!r} names no stage; write {begins}_stage_N")
            other = int(found[1])
            if other >= len(entries):
                raise ConfigError(f"{where}{key}: there is no stage {other}; the stages are 0 to {len(entries) - 1}")
            if (other < number) != (begins == "from"):
                raise ConfigError(
                    f"{where}{key}: {name} goes back, and a request goes through stages in their order; leave it out"
                )
            theirs, mine = ENDS[begins == "from"][0], f"{'to' if begins == 'from' else 'from'}_stage_{number}"
            said = _ends(entries[other], theirs, f"stage {other}: ").get(mine, connector)
            if said != connector:
                raise ConfigError(
                    f"{where}{key}: {name} is {connector!r}, and stage {other} says {said!r} of the same edge under "
                    f"{theirs}; name one"
                )


def _ends(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """What a stage says under `key`."""
    found = entry.get(key)
    if found is not None and not (isinstance(found, dict) and all(isinstance(each, str) for each in found.values())):
        raise ConfigError(
            f"{where}{key}={found!r} is not allowed; write the stage and its connector: `to_stage_1: shm`"
        )
    return found or {}
