"""The pipe axis: every rank holds some of a stack's blocks, and hidden states go from one rank to the next.

A build pass calls `share_blocks` before anything is read, and sets a `PipeRunner` as a stack's runner. Rows are the
portions in which the work goes round: while a rank runs one row, the rank before it runs the next. Rows of one token
each make up as many portions as there are ranks, as all that lie in one read the weights once. With a single row the
ranks take turns, which saves memory and no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.plans import Cut, Slices, Span
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Conditioning, Memory, Overhearing, StackRunner, behind
from omnimuse.parallel.mesh import Axis


class PipeRunner:
    """A stack runner that runs, by `inner`, those blocks that this rank has; the last rank tells all the outcome.

    Of some of a stack's blocks a rank may have none: it passes on what comes.
    """

    def __init__(self, inner: StackRunner, axis: Axis, held: Sequence[Block[Any]]) -> None:
        self.inner = inner
        self.axis = axis
        self.held = {block: number for number, block in enumerate(held)}

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        axis, layout, mine = self.axis, cond.layout, [block for block in blocks if block in self.held]
        last, sent, done = axis.size - 1, list[dist.Work](), list[Tensor]()
        overheard = cond.overheard() if isinstance(cond, Overhearing) else ()
        for aside in overheard:
            aside.zero_()
        for rows in portions(layout, axis.size):
            x, memory = layout.take(hidden, rows), None if memories is None else [memories[row] for row in rows]
            if axis.index:
                dist.recv(x, axis.ranks[axis.index - 1], group=axis.group)
            here = cond.select(rows)
            out = (self.inner(mine, x, behind(here, self.held[mine[0]]), memory) if mine else x).contiguous()
            if out.dtype != hidden.dtype or out.shape != x.shape:
                made, given = f"{tuple(out.shape)} {out.dtype}", f"{tuple(x.shape)} {hidden.dtype}"
                raise ModelError(f"blocks made {made} of {given}: they must keep both")
            done += layout.select(rows).unpack(out)
            if axis.index != last:
                work = dist.isend(out, axis.ranks[axis.index + 1], group=axis.group)
                sent += [] if work is None else [work]
        for work in sent:
            work.wait()
        whole = layout.pack(done).contiguous()  # on the others, something of the same shape
        dist.broadcast(whole, axis.ranks[last], group=axis.group)
        for aside in overheard:  # one rank has the block that left something there
            dist.all_reduce(aside, group=axis.group)
        return whole

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        """The first rank has the first block, and tells the others."""
        found = (
            self.inner.probe(blocks, hidden, cond).contiguous() if self.axis.index == 0 else torch.empty_like(hidden)
        )
        if found.dtype != hidden.dtype or found.shape != hidden.shape:
            raise ModelError(f"a probe is {tuple(found.shape)} {found.dtype}: it must be as the hidden states are")
        dist.broadcast(found, self.axis.ranks[0], group=self.axis.group)
        return found


def portions(layout: Layout, ranks: int) -> list[list[int]]:
    """The numbers of the rows that go round together: one each, or where rows are one token, some in each of as many
    portions as there are `ranks`.
    """
    count = len(layout.lengths)
    parts = min(ranks, count) if layout.length == 1 else count
    return [list(range(*Cut(at, parts).span(count))) for at in range(parts)]


def share_blocks(
    network: Network, axis: Axis, cuts: Mapping[str, Slices]
) -> tuple[dict[str, list[Span]], dict[str, Slices]]:
    """Leave this rank (on meta) nothing of the blocks that others run: the spans of all ranks, of every stack that is
    long enough.

    `cuts` is what it has of the tensors by now; with the spans comes what it then has. ConfigError if no stack has as
    many blocks as there are ranks.
    """
    found, spans = dict(cuts), dict[str, list[Span]]()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for label, stack in network.stacks().items():
        blocks = stack.blocks()
        if len(blocks) < axis.size:
            continue
        spans[label] = split([_size(block) for block in blocks], axis.size)
        start, stop = spans[label][axis.index]
        for module in [module for block in (*blocks[:start], *blocks[stop:]) for module in block.modules()]:
            for key, parameter in list(module.named_parameters(recurse=False)):
                name = names[id(parameter)]
                cut = found.get(name, Slices(0, len(parameter), ()))
                found[name] = Slices(cut.dim, cut.whole, ())
                shape = (*parameter.shape[: cut.dim], 0, *parameter.shape[cut.dim + 1 :])
                here = torch.empty(shape, dtype=parameter.dtype, device="meta")
                setattr(module, key, nn.Parameter(here, requires_grad=False))
    if not spans:
        most = longest(network)
        raise ConfigError(
            f"parallel pipe={axis.size} cannot be: the longest stack of {type(network).__name__} has {most} blocks, "
            f"and every rank needs one; use pipe={most} or less"
        )
    return spans, found


def longest(network: Network) -> int:
    """How many blocks its longest stack has."""
    return max(len(stack.blocks()) for stack in network.stacks().values())


def split(sizes: Sequence[int], ranks: int) -> list[Span]:
    """Spans of blocks, one for each rank and none empty, that are as even in bytes as their order allows."""
    ends, total, run = [0], sum(sizes), 0
    for number, size in enumerate(sizes):
        wanted = total * len(ends) / ranks
        left, needed = len(sizes) - number, ranks - len(ends)  # blocks from here on, and ranks after this one
        if len(ends) < ranks and number > ends[-1] and (run + size / 2 > wanted or left <= needed):
            ends.append(number)
        run += size
    return list(zip(ends, [*ends[1:], len(sizes)], strict=True))


def _size(block: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in block.parameters())
