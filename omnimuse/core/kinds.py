"""Whether the fields of a choice are of the kinds that they are written with: people make choices in Python, too, where
nothing else looks. Called first by the `__post_init__` of what `core/config.py` has. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from omnimuse.core.bounds import finite
from omnimuse.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", NoneType: "None"}
"""Kinds, as people are told of them."""


def check_kinds(choice: DataclassInstance, topic: str) -> None:
    """ConfigError for a field of `choice`, which people call `topic`, that is of another kind than it says."""
    chosen = [field.name for field in fields(choice) if not _usual(field, getattr(choice, field.name))]
    kinds = get_type_hints(type(choice)) if chosen else {}  # not for what nobody chose: it takes a while
    for name in chosen:
        check_kind(f"{topic} {name}", getattr(choice, name), kinds[name])


def check_kind(name: str, value: object, kind: Any) -> None:
    """ConfigError for a value, which people call `name`, that is of another kind."""
    if not _is(value, kind):
        raise ConfigError(f"{name}={value!r:.80} is not allowed; use {_words(kind)}")


def _usual(field: Field[Any], value: object) -> bool:
    """Whether it is what the field has where nobody chooses; of one that has nothing then, no value is."""
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return type(value) is type(default) and value == default


def _is(value: object, kind: Any) -> bool:
    outer, inner = get_origin(kind), get_args(kind)
    if outer in (Union, UnionType):
        return any(_is(value, each) for each in inner)
    if outer is Literal:
        return isinstance(value, str)  # which words there are, whoever made the choice says
    if outer in (tuple, Sequence):
        return isinstance(value, outer) and all(_is(each, inner[0]) for each in value)
    if outer is not None and issubclass(outer, Mapping):
        return isinstance(value, Mapping) and all(
            _is(each, text) for pair in value.items() for each, text in zip(pair, inner, strict=True)
        )
    if kind in (int, float):
        known = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return known and (isinstance(value, float) or finite(value))  # what a float may not be, whoever made it says
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    outer, inner = get_origin(kind), get_args(kind)
    if outer in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if outer is tuple:
        return "a tuple of texts" if inner[0] is str else "a tuple of numbers"
    if outer is Literal:
        return f"one of {', '.join(inner)}"
    if outer is Sequence:
        return "a list of texts"
    if outer is not None:
        return "a table of texts"
    return "a pathlib.Path" if kind is Path else WORDS.get(kind, kind.__name__)
