"""Which backends attend: the choice, and the mapping in which other engines and deploy files say it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.errors import ConfigError
from omnimuse.core.kinds import check_kinds
from omnimuse.core.names import backend_of


@dataclass(frozen=True)
class AttentionConfig:
    """The attention backend: one default, and exceptions by role or role category."""

    default: str = "auto"
    per_role: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(self, "attention")

    def over(self, other: AttentionConfig) -> AttentionConfig:
        """This where it says something, `other` elsewhere."""
        default = other.default if self.default == "auto" else self.default
        return AttentionConfig(default, {**other.per_role, **self.per_role})


def attention_of(said: object, where: str) -> AttentionConfig:
    """What `{default: NAME, per_role: {ROLE: NAME}}` chooses, each part of which may be left out. A name may be that of
    another program's, and stand below `backend`. ConfigError, which begins with `where`, for anything else.
    """
    choice = _mapping(said, where, ("default", "per_role"))
    roles = choice.get("per_role", {})
    found = {str(role): _name(name, f"{where}per_role: {role}: ") for role, name in _mapping(roles, where).items()}
    return AttentionConfig(_name(choice.get("default", "auto"), f"{where}default: "), found)


def _name(said: object, where: str) -> str:
    name = said if isinstance(said, str) else _mapping(said, where, ("backend",)).get("backend")
    if not isinstance(name, str):
        raise ConfigError(f"{where}{name!r:.80} names no backend; write one, such as sdpa")
    return backend_of(name)


def _mapping(said: object, where: str, known: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """What has a value in it; ConfigError for what is not `known`, where it matters."""
    if not isinstance(said, Mapping):
        raise ConfigError(f"{where}{said!r:.80} is not allowed; use names and values, such as per_role: {{self: sdpa}}")
    given = {str(key): value for key, value in said.items() if value is not None}
    if known and (others := sorted(given.keys() - set(known))):
        raise ConfigError(f"{where}{others[0]!r} is not honoured; allowed are {', '.join(known)}")
    return given
