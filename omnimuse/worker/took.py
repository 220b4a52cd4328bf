"""What a request took so far, as numbers: here and, of a model in pools, in those before this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T", float, int)


@dataclass
class Took:
    """By stage the seconds of every step, or of the one run, and the bytes that were held behind each; by block of a
    network those of every run, where they were asked for.
    """

    timings: dict[str, tuple[float, ...]] = field(default_factory=dict)
    held: dict[str, tuple[int, ...]] = field(default_factory=dict)
    blocks: dict[str, tuple[float, ...]] = field(default_factory=dict)
    blocks_held: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def then(self, after: Took) -> Took:
        """With what it took afterwards: other stages, and runs of other blocks or of the same."""
        return Took(
            self.timings | after.timings,
            self.held | after.held,
            _followed(self.blocks, after.blocks),
            _followed(self.blocks_held, after.blocks_held),
        )


def _followed(before: Mapping[str, tuple[T, ...]], after: Mapping[str, tuple[T, ...]]) -> dict[str, tuple[T, ...]]:
    return {name: before.get(name, ()) + after.get(name, ()) for name in dict.fromkeys((*before, *after))}
