"""Weights in parts: every rank that shares a row's tokens keeps a part of each block, put together while it runs.

A build pass calls `share_blocks` before anything is read, so that no rank ever holds more, and sets a `ShardRunner`
around what runs a block that is whole. What is already cut by the tensor axis is cut once more, along the same
dimension. Known elsewhere as HSDP or FSDP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.core.plans import Cut, Slices
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Conditioning, Memory, PlainRunner, StackRunner, behind
from omnimuse.parallel.collectives import gathering
from omnimuse.parallel.mesh import Axis


@dataclass(frozen=True)
class Shard:
    """Where a parameter is in its block, along which dimension it is in parts, and its shape there."""

    owner: nn.Module
    key: str
    dim: int
    shape: tuple[int, ...]

    def part(self, part: Cut) -> tuple[int, ...]:
        """The shape of one part."""
        return (*self.shape[: self.dim], part.share(self.shape[self.dim]), *self.shape[self.dim + 1 :])


class ShardRunner:
    """Runs one block after the other; a block's weights are whole while it runs, and in parts before and after.

    While `inner` runs a block, the parts of the next one come.
    """

    def __init__(self, shards: Mapping[nn.Module, Sequence[Shard]], axis: Axis) -> None:
        self.inner: StackRunner = PlainRunner()
        self._shards = shards
        self._places = {block: place for place, block in enumerate(shards)}
        self._axis = axis

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        coming = self._coming(blocks[0])
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            whole = coming()
            coming = list if following is None else self._coming(following)
            with self._holding(block, whole):
                hidden = self.inner([block], hidden, behind(cond, self._places[block]))
        return hidden

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        with self._holding(blocks[0], self._coming(blocks[0])()):
            return blocks[0].probe(hidden, cond)

    @contextmanager
    def _holding(self, block: Block[Any], whole: Sequence[Tensor]) -> Iterator[None]:
        """The weights of `block` are whole for the length of a `with` block."""
        shards = self._shards[block]
        kept = [shard.owner.get_parameter(shard.key) for shard in shards]
        try:
            for shard, tensor in zip(shards, whole, strict=True):
                setattr(shard.owner, shard.key, nn.Parameter(tensor, requires_grad=False))
            yield
        finally:
            for shard, parameter in zip(shards, kept, strict=True):
                setattr(shard.owner, shard.key, parameter)

    def _coming(self, block: Block[Any]) -> Callable[[], list[Tensor]]:
        """Begin to gather every weight of `block`, those of one number format together; what is called to have them."""
        shards = self._shards[block]
        kept = [shard.owner.get_parameter(shard.key) for shard in shards]
        alike: dict[torch.dtype, list[int]] = defaultdict(list)
        for number, tensor in enumerate(kept):
            alike[tensor.dtype].append(number)
        flights = []
        for numbers in alike.values():
            parts = [
                [shards[number].part(Cut(at, self._axis.size)) for number in numbers] for at in range(self._axis.size)
            ]
            counts = [sum(map(prod, shapes)) for shapes in parts]
            flat = torch.cat([kept[number].reshape(-1) for number in numbers])
            flights.append((numbers, parts, gathering(self._axis, flat, counts)))

        def finish() -> list[Tensor]:
            found: dict[int, Tensor] = {}
            for numbers, parts, arrive in flights:
                pieces = [_cut_up(flat, shapes) for flat, shapes in zip(arrive(), parts, strict=True)]
                for number, every in zip(numbers, zip(*pieces, strict=True), strict=True):
                    found[number] = torch.cat(every, dim=shards[number].dim)
            return [found[number] for number in range(len(shards))]

        return finish


def _cut_up(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Numbers end to end -> tensors of these shapes."""
    pieces = flat.split([prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def share_blocks(
    network: Network, axis: Axis, cuts: Mapping[str, Slices], read_as: Mapping[str, str]
) -> tuple[dict[nn.Module, list[Shard]], dict[str, Slices]]:
    """Leave this rank (on meta) its part of every parameter of the blocks that run at every step.

    `cuts` is what it has of the tensors by now; parameters that are `read_as` others are called so there. What each
    block's weights are made of, and what this rank then has.
    """
    part, found, shards = Cut(axis.index, axis.size), dict(cuts), dict[nn.Module, list[Shard]]()
    names = {id(parameter): read_as.get(name, name) for name, parameter in network.named_parameters()}
    for block in network.all_blocks():
        shards[block] = []
        for module in block.modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                name = names[id(parameter)]
                cut = found.get(name, Slices(0, len(parameter), ((0, len(parameter)),)))
                shard = Shard(module, key, cut.dim, tuple(parameter.shape))
                shards[block].append(shard)
                found[name] = cut.within(*part.span(shard.shape[cut.dim]))
                here = torch.empty(shard.part(part), dtype=parameter.dtype, device="meta")
                setattr(module, key, nn.Parameter(here, requires_grad=False))
    return shards, found
