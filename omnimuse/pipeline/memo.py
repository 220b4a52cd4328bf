"""`Memo`: outputs of one-shot stages, remembered by the content of their inputs, and beginnings of texts.

The runner asks it before it runs a stage that has a key; a loop that reads a text, for what was read of its like.
Bounded in bytes, and where memory is short in fewer: it gives way to whoever asks for something. The least recently
used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable
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
        self._holders: dict[Hashable, str] = {}
        self._most = limit
        self._present: Container[str] = ()

    def get(self, key: Hashable, holder: str = "") -> tuple[Any, ...] | None:
        """The remembered values, or None. The `holder`, if there is one, has the same tensors from now on."""
        if key not in self._entries:
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        self._holders[key] = holder
        return self._entries[key]

    def put(self, key: Hashable, values: tuple[Any, ...], most: int = 0, holder: str = "") -> None:
        """Remember `values`, which the `holder` has as well, if there is one; larger than the whole memo is not
        remembered. They count as `most` bytes where that is given: what ranks have unequal parts of, all of them forget
        at the same time.
        """
        size = _size(values) if not most else most + OVERHEAD
        if size > self.limit or key in self._entries:
            return
        self._entries[key], self._sizes[key], self._holders[key] = values, size, holder
        self.bytes += size
        self._shrink()

    def within(self, most: int | None, present: Container[str] = ()) -> None:
        """Remember no more than `most` bytes from now on (None: as many as the limit), but for what holders have that
        are `present`: nothing would be gained by forgetting that.
        """
        self._most, self._present = self.limit if most is None else min(most, self.limit), present
        self._shrink()

    def leave(self, holder: str) -> None:
        """The holder has tensors of its own from now on, perhaps elsewhere."""
        self._holders = {key: "" if who == holder else who for key, who in self._holders.items()}

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._sizes.clear()
        self._holders.clear()
        self.bytes = 0

    def _shrink(self) -> None:
        for key in [*self._entries]:
            if self.bytes <= self._most:
                return
            if self.bytes > self.limit or self._holders[key] not in self._present:
                del self._entries[key], self._holders[key]
                self.bytes -= self._sizes.pop(key)


def _size(values: tuple[Any, ...]) -> int:
    return _bytes(values) + OVERHEAD


def _bytes(value: Any) -> int:
    """What the tensors in a slot's value take; a slot may hold several."""
    if isinstance(value, tuple | list):
        return sum(map(_bytes, value))
    if is_dataclass(value):
        return sum(_bytes(getattr(value, part.name)) for part in fields(value))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
