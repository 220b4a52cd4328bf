"""Rows into forwards: which rows share one evaluation of a network, and the evaluation itself.

Called by the runner (which adds failure isolation and ranks) and by a pipeline's own verbs. Knows nothing of requests,
schedules or models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor

from omnimuse.layers.network import Network
from omnimuse.pipeline.stage import Context, Row

NOBODY: Mapping[str, int] = MappingProxyType({})


def group(
    ctx: Context,
    rows: Iterable[Row],
    *,
    exact: bool = False,
    tokens: int | None = None,
    fewer: Mapping[str, int] = NOBODY,
) -> list[list[Row]]:
    """Rows that share a forward, in order of first appearance: those whose network wears the same adapters.

    `exact` gives every row its own forward, as may adapters to those that wear any. `tokens` bounds one forward, or
    what `fewer` has for its network; a larger single row still runs.
    """
    groups: dict[Hashable, Bins] = {}
    packing: dict[str, str] = {}
    for number, row in enumerate(rows):
        if (how := packing.get(row.network)) is None:
            how = packing[row.network] = ctx.packing(row.network)
        worn = row.adapters
        apart = exact or (worn and ctx.adapters.alone)
        key: Hashable = number if apart else (row.network, worn, _shape_bucket(how, row))
        if (bins := groups.get(key)) is None:
            bins = groups[key] = Bins(fewer.get(row.network, tokens))
        bins.put(row)
    return [part for bins in groups.values() for part in bins.parts]


class Bins:
    """Rows in `parts` of at most so many `tokens`, or of one row."""

    def __init__(self, tokens: int | None) -> None:
        self.parts: list[list[Row]] = []
        self._most = math.inf if tokens is None else tokens
        self._room = -math.inf  # there is no part yet

    def put(self, row: Row) -> None:
        """One more, into the last part or a new one."""
        if row.tokens > self._room:
            self.parts.append([])
            self._room = self._most
        self.parts[-1].append(row)
        self._room -= row.tokens


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


def _shape_bucket(packing: str, row: Row) -> Hashable:
    """Rows of different lengths share a forward only where the network can separate them."""
    if packing == "tokens":
        return row.tokens == 1
    return None if packing == "varlen" else (row.tokens, row.shape)
