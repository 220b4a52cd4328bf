"""What tests see of a network: what its embedders give to its blocks (`watched`), and which weights change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Conditioning, Memory, PlainRunner


class Watch(PlainRunner):
    """A stack runner that keeps (blocks, hidden states, conditions, memories) of every call, and runs nothing."""

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
    stack, watch = network.last_stack(), Watch()
    before, stack.runner = stack.runner, watch
    for batch in batches:
        network(batch, [Memory(step=row) for row in range(len(batch))])
    stack.runner = before
    return watch.seen


def idle(network: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """The names of parameters that make no difference to what `run` gives; each is another for a while."""
    expected, found = run(), list[str]()
    for name, weight in network.named_parameters():
        kept = weight.clone()
        weight.mul_(1.5)
        if torch.equal(run(), expected):
            found.append(name)
        weight.copy_(kept)
    return found
