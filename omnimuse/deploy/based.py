"""Deploy files of another engine that say only what they change of another one, their `base_config`, or of themselves
on machines of some kind. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ConfigError

BASE, CUDA = "base_config", "cuda"
DEEP = ("default_sampling_params", "subtalker_sampling_params", "engine_args")
"""What is changed of a stage name by name; of anything else in it what stands last is meant whole."""


def with_base(path: Path, load: Callable[[Path], dict[str, Any]], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What `load` finds in the file, over what that has which it is based on, beside it unless the path says otherwise.

    `above` are the files that are based on this one. ConfigError where one of them is based on itself.
    """
    content = load(path)
    if content.get(BASE) is None or "stages" not in content:
        return content
    if not isinstance(content[BASE], str):
        raise ConfigError(f"{path}: {BASE}={content[BASE]!r} is not allowed; use the path of a file")
    above, base = (*above, path.resolve()), path.parent / content.pop(BASE)
    if base.resolve() in above:
        raise ConfigError(f"{path}: {BASE}: {base} is based on this file itself; name another one")
    known = with_base(base, load, above)
    if "stages" not in known:
        raise ConfigError(f"{path}: {BASE}: {base} has no `stages` of which something could be changed")
    found = {**known, **content, "stages": _stages(known["stages"], content["stages"])}
    if "connectors" in known and "connectors" in content:
        found["connectors"] = _changed(known["connectors"], content["connectors"])
    return found


def with_platform(content: dict[str, Any]) -> dict[str, Any]:
    """A file of `stages` with what it says besides of machines with CUDA, which it is for: stages by their numbers."""
    platforms = content.get("platforms")
    own = platforms.get(CUDA) if isinstance(platforms, Mapping) else None
    if not isinstance(own, Mapping) or "stages" not in own or "stages" not in content:
        return content
    return {**content, "stages": _stages(content["stages"], own["stages"])}


def _stages(base: Any, changes: Any) -> Any:
    """Every stage of both, by its number."""
    if not all(isinstance(each, list) and all(isinstance(entry, dict) for entry in each) for each in (base, changes)):
        return changes  # whoever reads it says what is wrong
    found = {entry.get("stage_id", number): entry for number, entry in enumerate(base)}
    for number, entry in enumerate(changes):
        known = found.get(entry.get("stage_id", number), {})
        deep = {key: _changed(known[key], entry[key]) for key in DEEP if key in known and key in entry}
        found[entry.get("stage_id", number)] = {**known, **entry, **deep}
    return [found[number] for number in sorted(found)] if all(isinstance(key, int) for key in found) else changes


def _changed(base: Any, changes: Any) -> Any:
    """`changes` over `base`: of mappings name by name, all the way down."""
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    return {**base, **{key: _changed(base.get(key), value) for key, value in changes.items()}}
