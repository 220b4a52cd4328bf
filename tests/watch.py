"""A stack runner that keeps what it is given: for tests that look between a network's embedders and its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Conditioning, Memory, PlainRunner


class Watch(PlainRunner):
    """Keeps (blocks, hidden states, conditions, memories) of every call, and runs nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        self.seen.append((blocks, hidden, cond, memories))
        return hidden


def watched(network: Network, *batches: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What the runner of the last stack was given in one forward per batch of rows."""
    stack, watch = list(network.stacks().values())[-1], Watch()
    before, stack.runner = stack.runner, watch
    for batch in batches:
        network(batch, [Memory(step=row) for row in range(len(batch))])
    stack.runner = before
    return watch.seen
