"""The sequence axis: every rank has a part of every row's tokens, and all attend to all of them.

`SequenceRunner` cuts the hidden states before a stack and puts them together after it. In between, blocks see their own
tokens only, and attention sites exchange what they need through `Usp`: along Ulysses, ranks swap tokens for heads
(arXiv 2309.14509); along the ring, keys and values are passed on, and outcomes are merged by their weights (arXiv
2310.01889); both together as in arXiv 2405.07719. Layouts say who has what; models know nothing of it.

Letters: R rows, S tokens, T tokens of all rows, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention, Backend
from omnimuse.attention.layout import Layout
from omnimuse.core.errors import ConfigError
from omnimuse.core.plans import Cut
from omnimuse.layers.stack import Block, Conditioning, Memory, StackRunner
from omnimuse.parallel.collectives import exchanged, gathered, passed_on
from omnimuse.parallel.mesh import RING, SEQUENCE, TENSOR, ULYSSES, Axis, Mesh


class SequenceRunner:
    """A stack runner in which every rank runs `inner` over its part of the tokens; all have all of them at the end."""

    def __init__(self, inner: StackRunner, mesh: Mesh) -> None:
        self.inner = inner
        self.mesh = mesh

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        layout, axis = cond.layout, self.mesh.now.axis(SEQUENCE)
        part = Cut(axis.index, axis.size)
        if axis.size == 1:
            return self.inner(blocks, hidden, cond, memories)
        if (here := cond.cut(part)) is None:
            return self._apart(blocks, hidden, cond, memories, part)
        local = self.inner(blocks, layout.share(hidden, part), here, memories)
        flats = gathered(axis, local.flatten(0, 1), [sum(lengths) for lengths in here.layout.everywhere])
        rows = len(layout.lengths) if here.layout.dense else 1
        return layout.join([flat.unflatten(0, (rows, len(flat) // rows)) for flat in flats])

    def _apart(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None,
        part: Cut,
    ) -> Tensor:
        """Rows that cannot be cut, all of them on every rank, and apart from these those that can: a row is cut or not
        in any company.
        """
        layout = cond.layout
        whole = [row for row in range(len(layout.lengths)) if cond.select([row]).cut(part) is None]
        others = [row for row in range(len(layout.lengths)) if row not in whole]
        if not others:
            return self.inner(blocks, hidden, cond, memories)
        found = dict[int, Tensor]()
        for rows in (whole, others):
            memory = None if memories is None else [memories[row] for row in rows]
            out = self(blocks, layout.take(hidden, rows), cond.select(rows), memory)
            found |= zip(rows, layout.select(rows).unpack(out), strict=True)
        return layout.pack([found[row] for row in range(len(layout.lengths))])

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)


class Usp:
    """How a site attends whose tokens are spread over the ranks of `mesh`."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.ring = mesh.axis(RING)

    @property
    def ulysses(self) -> Axis:
        """The ranks that swap tokens for heads in the forward that runs now."""
        return self.mesh.now.axis(ULYSSES)

    @torch.compiler.disable  # what is exchanged depends on the size of every row
    def __call__(
        self,
        backend: Backend,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """q, k, v [*, S, N, H], packed by a layout that was cut, and perhaps what every rank knows of a row,
        [2, K, N, H] -> like q.
        """
        wide = self.ulysses.size
        shares = [Cut(at, wide).share(q.shape[2]) for at in range(wide)]  # heads of each rank
        groups = [layout.everywhere[at : at + wide] for at in range(0, len(layout.everywhere), wide)]  # by ring place
        group = groups[self.ring.index]
        parts = torch.stack([x.flatten(0, 1) for x in (q, k, v)]).split(shares, dim=2)  # [3, T, N_j, H] each
        sizes = [(3, sum(lengths), shares[self.ulysses.index], q.shape[-1]) for lengths in group]
        flats = exchanged(self.ulysses, parts, sizes)  # the tokens of every rank, for the heads of this one
        rows = _by_row(flats, group)  # [3, S_i, N_j, H] each
        counts = [[sum(lengths) for lengths in zip(*each, strict=True)] for each in groups]
        start = sum(shares[: self.ulysses.index])
        seen = [each[:, :, start : start + shares[self.ulysses.index]] for each in known]  # by this rank's heads
        outs = _attend(backend, rows, seen) if self.ring.size == 1 else self._around(backend, rows, counts, seen)
        back = [torch.cat(own) for own in zip(*_by_rank(outs, group), strict=True)]  # [T_i, N_j, H] by rank
        returned = [(sum(layout.lengths), heads, q.shape[-1]) for heads in shares]
        return torch.cat(exchanged(self.ulysses, back, returned), dim=1).view(q.shape)

    def _around(
        self, backend: Backend, rows: Sequence[Tensor], counts: Sequence[Sequence[int]], known: Sequence[Tensor]
    ) -> list[Tensor]:
        """The outcome of every row's own queries with what is known here, and with the keys and values of the whole
        ring, which pass by.
        """
        queries = [row[0][None] for row in rows]  # [1, S_i, N, H]
        passing = torch.cat([row[1:] for row in rows], dim=1)  # [2, T, N, H]
        merged: list[tuple[Tensor, Tensor] | None] = [None] * len(rows)
        for number, (k, v) in enumerate(known):
            if len(k) and queries[number].shape[1]:
                merged[number] = backend.weigh(queries[number], k[None], v[None])
        for step in range(self.ring.size):
            whose = (self.ring.index - step) % self.ring.size
            for number, row in enumerate(passing.split(list(counts[whose]), dim=1)):
                if row.shape[1] and queries[number].shape[1]:
                    found = backend.weigh(queries[number], row[0][None], row[1][None])
                    merged[number] = found if (before := merged[number]) is None else _merged(before, found)
            if step + 1 < self.ring.size:
                coming = sum(counts[(whose - 1) % self.ring.size])
                passing = passed_on(self.ring, passing, (2, coming, *passing.shape[2:]))
        outs = zip(merged, rows, strict=True)
        return [row[0] if found is None else found[0][0].to(row.dtype) for found, row in outs]


def bind(model: nn.Module, mesh: Mesh, name: str) -> None:
    """Let every attention of `model`, whose weights are still whole, attend across the ranks of the sequence axis.

    ConfigError for fewer heads than ranks, or blocks that mix tokens by themselves; the same on every rank.
    """
    ulysses, ring, tensor = (mesh.axis(axis).size for axis in (ULYSSES, RING, TENSOR))
    for module in model.modules():
        if isinstance(module, Block) and module.mixes_tokens:
            raise ConfigError(
                f"parallel ulysses={ulysses} x ring={ring} cannot be: blocks of {name} mix tokens outside attention; "
                "use tensor"
            )
        if not isinstance(module, Attention):
            continue
        fewest = module.whole.fewest(tensor)
        if 0 < fewest < ulysses:  # with none, there is something to say about the tensor axis
            raise ConfigError(
                f"parallel ulysses={ulysses} cannot be: the {module.num_heads} heads of an attention of {name} over "
                f"tensor={tensor} leave {fewest}, and every rank needs one; use ulysses={fewest} or less, or ring"
            )
        module.spread = Usp(mesh)


def _attend(backend: Backend, rows: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
    """Each row's [3, S, N, H], and what is known of it -> [S, N, H]; equal rows of which nothing is, together."""
    if known:
        beside = [torch.cat([each, row[1:]], dim=1)[:, None] for each, row in zip(known, rows, strict=True)]
        return [backend(row[:1], *kv)[0] for row, kv in zip(rows, beside, strict=True)]
    if len({row.shape for row in rows}) == 1:
        q, k, v = torch.stack(list(rows)).unbind(1)  # [R, S, N, H] each
        return list(backend(q, k, v).unbind(0))
    return [backend(*row[:, None])[0] for row in rows]


def _by_row(flats: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> list[Tensor]:
    """Every rank's [3, T_i, *], rows end to end -> every row's [3, S, *], ranks end to end."""
    parts = [flat.split(list(each), dim=1) for flat, each in zip(flats, lengths, strict=True)]
    return [torch.cat(row, dim=1) for row in zip(*parts, strict=True)]


def _by_rank(rows: Sequence[Tensor], lengths: Sequence[Sequence[int]]) -> list[tuple[Tensor, ...]]:
    """Every row's [S, *], ranks end to end -> for every row what belongs to each rank."""
    return [row.split([each[number] for each in lengths]) for number, row in enumerate(rows)]


def _merged(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Outcomes [1, S, N, H] of one query with two sets of keys, by the logarithms of their weights [1, S, N]."""
    weight = torch.logaddexp(one[1], two[1])
    first, second = ((log - weight).exp()[..., None] for log in (one[1], two[1]))
    return one[0] * first + two[0] * second, weight
