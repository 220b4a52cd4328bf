"""From a checkpoint's config.json to the dataclass of a network's facts. No torch.

Networks call it in `from_config`. A key that nobody here knows is refused: it may be what makes another model of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from omnimuse.core.errors import ModelError

Facts = TypeVar("Facts")


def read_facts(
    kind: type[Facts],
    config: Mapping[str, Any],
    where: str,
    fixed: Mapping[str, Sequence[Any]],
    ignored: Collection[str] = (),
) -> Facts:
    """`kind`, a dataclass, with the values of `config`; lists become tuples, and what is absent or null the default.

    Keys of `fixed` may only have one of its values, the last of which is the usual one; keys that are `ignored` or
    begin with an underscore may have any. Raises ModelError, which calls the configuration `where`, for any other value
    or key, and for a fact that has no default and is absent.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key, value in config.items():
        if key in known or key in ignored or key.startswith("_"):
            continue
        if key not in fixed:
            raise ModelError(f"{where} has an unknown key {key!r} ({value!r}); is it another model?")
        if _tuples(value) not in [_tuples(allowed) for allowed in fixed[key]]:
            raise ModelError(f"{where}: {key}={value!r} is not supported; only {fixed[key][-1]!r} is")
    chosen = {key: _tuples(config[key]) for key in known if config.get(key) is not None}
    absent = sorted(key for key, field in known.items() if key not in chosen and field.default is MISSING)
    if absent:
        raise ModelError(f"{where} has no {', '.join(absent)}; use a complete checkpoint")
    return kind(**chosen)


def part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a configuration."""
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise ModelError(f"config.json has no {name}; use a complete checkpoint")
    return found


def known_of(given: Mapping[str, Any], kind: type[Any], fixed: Collection[str]) -> dict[str, Any]:
    """Of a part of a configuration, what `kind` has fields for, and what may have one value only."""
    return {name: given[name] for name in (*(field.name for field in fields(kind)), *fixed) if name in given}


def facts_inside(kind: type[Facts], config: Mapping[str, Any], names: Sequence[str], fixed: Mapping[str, Any]) -> Facts:
    """`kind` from the part of a checkpoint's config.json that `names` lead to; what it says besides is passed over."""
    given = config
    for name in names:
        given = part(given, name)
    return read_facts(kind, known_of(given, kind, fixed), f"config.json, {', '.join(names)}", fixed)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
