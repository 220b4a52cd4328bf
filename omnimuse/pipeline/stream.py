"""`Stream`: a slot that grows, by which one track of a pipeline hands over to another while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stream:
    """What one track has put here for another, in order; when it is `closed`, there comes no more."""

    items: list[Any] = field(default_factory=list)
    closed: bool = False

    def put(self, item: Any) -> None:
        """One more."""
        assert not self.closed, "a stream that is closed stays as it is"
        self.items.append(item)

    def close(self) -> None:
        """There comes no more."""
        self.closed = True
