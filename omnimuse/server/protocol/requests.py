"""Request bodies for the OpenAPI document, made from the table of fields so that the two cannot disagree.

Only what is honoured is described. Requests are not read with these models but by `translate/aliases.py`, whose
refusals say more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from omnimuse.server.translate import fields as table
from omnimuse.server.translate.field import Field as Row
from omnimuse.server.translate.field import Kind

_TYPES: dict[str, Any] = {
    "whole": int,
    "real": float,
    "flag": bool,
    "resolution": int | str,
    "seconds": float | str,
    "object": dict[str, Any],
    "any": Any,
    "list": list[Any],
    "file": bytes,
    "picture": bytes | str | dict[str, str] | list[str | dict[str, str]],
    "clip": bytes | str | dict[str, str],
    "margins": str | list[int],
    "seed": int,
    "texts": str | list[str],
    "one": str | list[str],
    "deadline": float | str,
    "adapters": str | dict[str, Any] | list[str | dict[str, Any]],
}
_REQUIRED = frozenset({"prompt", "messages"})
_EITHER = frozenset({"audio", "speech"})
"""Kinds whose prompt has two names, of which either will do."""


def request_model(name: str, kind: Kind) -> type[BaseModel]:
    """The body of one kind of request, as a model called `name` that forbids other fields."""
    needed = _REQUIRED if kind not in _EITHER else frozenset[str]()
    described: dict[str, Any] = {field.name: _described(field, needed) for field in table.TABLE[kind] if field.target}
    return create_model(name, __config__=ConfigDict(extra="forbid"), **described)


def _described(field: Row, needed: frozenset[str]) -> tuple[Any, Any]:
    """The type and the pydantic field of one wire field."""
    kind: Any = _TYPES.get(field.shape, str)
    about = Field(description=field.note, ge=field.low, le=field.high)
    if field.shape == "choice":
        kind = Literal[field.allowed]
    elif field.shape == "background":
        kind = Literal[field.allowed] | bool
    elif field.shape == "size":
        about = Field(description=field.note, pattern=r"^(auto|adjust|[0-9]{1,7} ?[xX*×] ?[0-9]{1,7})$")
    elif field.shape == "text":
        shortest = 1 if field.name in _REQUIRED else None
        about = Field(description=field.note, max_length=field.longest, min_length=shortest)
    if field.name in needed:
        return Annotated[kind, about], ...
    return Annotated[kind, about] | None, None
