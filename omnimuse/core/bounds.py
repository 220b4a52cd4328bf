"""Values of a request of their kind and between their bounds: what lies outside is refused with what is allowed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from omnimuse.core.errors import RequestError


def whole(name: str, value: Any, low: int, high: int) -> None:
    """RequestError unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name}={value!r} is not a whole number; use one from {low} to {high}", name)
    if not low <= value <= high:
        nearest = low if value < low else high
        raise RequestError(f"{name}={value} is out of range; use {low} to {high} (the nearest is {nearest})", name)


def finite(value: Any) -> bool:
    """Whether `value` is a number that a float can hold: no NaN, nothing infinite, no whole number of 400 digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def real(name: str, value: Any, low: float, high: float) -> None:
    """RequestError unless `value` is a number from `low` to `high`, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise RequestError(f"{name}={value!r:.80} is not a number; use one from {low:g} to {high:g}", name)
    if not low <= value <= high:
        nearest = low if value < low else high
        raise RequestError(
            f"{name}={value!r:.80} is out of range; use {low:g} to {high:g} (the nearest is {nearest:g})", name
        )


def is_text(text: str) -> bool:
    """Whether `text` can be written down: half a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def object_in(text: str | bytes) -> dict[str, Any] | None:
    """The object that `text` is in JSON, or None: what strangers wrote is cut short, is a list, nests without end."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def named(name: str, value: Any) -> None:
    """RequestError unless `value` is a mapping of names to values."""
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} must be a mapping of names to values, got {type(value).__name__}", name)
