"""Rows into forwards: which rows share one evaluation of a network, and the evaluation itself.

Called by the runner (which adds failure isolation and ranks) and by a pipeline's own verbs. Knows nothing of requests,
schedules or models.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor

from omnimuse.layers.network import Network
from omnimuse.pipeline.stage import Context, Row


def group(ctx: Context, rows: Iterable[Row], *, exact: bool = False, tokens: int | None = None) -> list[list[Row]]:
    """Rows that share a forward, in order of first appearance: those whose network wears the same adapters.

    `exact` gives every row its own forward, as may adapters to those that wear any. `tokens` bounds one forward; a
    larger single row still runs.
    """
    groups: dict[Hashable, list[list[Row]]] = {}
    for number, row in enumerate(rows):
        apart = exact or (ctx.adapters.alone and row.adapters)
        key: Hashable = number if apart else (row.key, _shape_bucket(ctx, row))
        bins = groups.setdefault(key, [[]])
        if tokens is not None and bins[-1] and sum(r.tokens for r in bins[-1]) + row.tokens > tokens:
            bins.append([])
        bins[-1].append(row)
    return [part for bins in groups.values() for part in bins]


def forward(ctx: Context, rows: Sequence[Row]) -> list[Tensor]:
    """One forward of the network that all `rows` name; one prediction per row, in order."""
    network = ctx.network(rows[0].network)
    assert isinstance(network, Network)
    with ctx.adapters.wearing(rows[0].state.worn):
        return network([row.inputs for row in rows], [row.memory for row in rows])


def evaluate(ctx: Context, rows: Sequence[Row]) -> list[Tensor]:
    """The predictions of all rows, in order, sharing forwards where rows allow it."""
    results: dict[int, Tensor] = {}
    for part in group(ctx, rows):
        for row, prediction in zip(part, forward(ctx, part), strict=True):
            results[id(row)] = prediction
    return [results[id(row)] for row in rows]


def _shape_bucket(ctx: Context, row: Row) -> Hashable:
    """Rows of different lengths share a forward only where the network can separate them."""
    packing = ctx.packing(row.network)
    if packing == "tokens":
        return row.tokens == 1
    return None if packing == "varlen" else (row.tokens, row.shape)
