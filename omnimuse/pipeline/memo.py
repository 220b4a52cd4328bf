"""`Memo`: outputs of one-shot stages, remembered by the content of their inputs, and beginnings of texts.

The runner asks it before it runs a stage that has a key; a loop that reads a text, for what was read of its like.
Bounded in bytes; the least recently used goes first. Keys carry the weights' version, so nothing stale is ever found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

OVERHEAD = 256
"""Bytes that an entry takes beside its tensors."""


class Memo:
    """A least-recently-used map from content keys to tuples of slot values, at most `limit` bytes of tensors."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self._entries: OrderedDict[Hashable, tuple[Any, ...]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}

    def get(self, key: Hashable) -> tuple[Any, ...] | None:
        """The remembered values, or None."""
        if key not in self._entries:
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Hashable, values: tuple[Any, ...], most: int = 0) -> None:
        """Remember `values`; larger than the whole memo is not remembered. They count as `most` bytes where that is
        given: what ranks have unequal parts of, all of them forget at the same time.
        """
        size = _size(values) if not most else most + OVERHEAD
        if size > self.limit or key in self._entries:
            return
        self._entries[key], self._sizes[key] = values, size
        self.bytes += size
        while self.bytes > self.limit:
            oldest, _ = self._entries.popitem(last=False)
            self.bytes -= self._sizes.pop(oldest)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._sizes.clear()
        self.bytes = 0


def _size(values: tuple[Any, ...]) -> int:
    return _bytes(values) + OVERHEAD


def _bytes(value: Any) -> int:
    """What the tensors in a slot's value take; a slot may hold several."""
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if is_dataclass(value):
        return sum(_bytes(getattr(value, part.name)) for part in fields(value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
