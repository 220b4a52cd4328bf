"""Products of a few rows, one token of each: what a model that writes spends its time on.

In the tier "invariant" a token that is written is multiplied by other code than a prompt is read by: not a matter of
company, as how many tokens a row reads is its own. Here rows are cut into tiles of heights that agree with one another,
as `steady.py` has it, but of one row and more. Large weights are packed, for a library whose products agree from one
row on and take little more time than reading the weights does.

Letters: R rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.layers.steady import ALIGNMENT, SteadyLinear, Weighing, agreeing, cut, equal_rows, tiled

HEIGHTS = (64, 32, *range(16, 0, -1))
LARGE = 2**17
"""Numbers in weights from which on packing saves more than its calls take."""


@dataclass(frozen=True)
class Few:
    """How a kind of product is computed for few rows: in tiles of these heights, tallest first, of packed weights or
    not.
    """

    heights: tuple[int, ...]
    packed: bool


class FewLinear(SteadyLinear):
    """`SteadyLinear`, but where every row is one token, [R, 1, K], as `few` has it."""

    def __init__(self, linear: Weighing, heights: Sequence[int], few: Few) -> None:
        super().__init__(linear, heights)
        self.few = few
        self._whole = frozenset(few.heights)
        self._packed: tuple[int, Tensor] | None = None  # made of what lay there

    def made(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[1:-1] != (1,):
            return super().made(x, bias)
        if not self.few.packed:
            if x.shape[0] in self._whole:
                return _plain(x, self.weight, bias)
            return tiled(x, self.weight, bias, self.few.heights)
        return multiplied(x[:, 0], self._weights(), bias, self.few)[:, None]

    @property
    def packed_bytes(self) -> int:
        """What the packed weights take, made or not."""
        return self.weight.nbytes if self.few.packed else 0

    @property
    def unmade(self) -> int:
        """What they are going to take when they are first asked for."""
        return self.packed_bytes if self._packed is None else 0

    def unpack(self) -> None:
        """Let go of the packed weights, until they are asked for."""
        self._packed = None

    def _weights(self) -> Tensor:
        """The packed weights; made when they are first asked for, and again when the weights lie elsewhere."""
        if self._packed is None or self._packed[0] != self.weight.data_ptr():
            self._packed = self.weight.data_ptr(), pack(self.weight)
        return self._packed[1]


def pack(weight: Tensor) -> Tensor:
    """weight [N, K] in an order that oneDNN has chosen, which no other operation reads."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def multiplied(x: Tensor, packed: Tensor, bias: Tensor | None, few: Few) -> Tensor:
    """x [R, K] times packed weights, plus bias, [R, N]."""
    if len(x) in few.heights:
        return _product(x, packed, bias)
    tiles = []
    for start, height in _places(len(x), few.heights):
        tile = x[start : start + height]
        if len(tile) < height:
            tile = torch.cat([tile, tile.new_zeros(height - len(tile), x.shape[1])])
        tiles.append(_product(tile, packed, bias))
    return torch.cat(tiles)[: len(x)]


def few_rows(weight: Tensor, bias: Tensor | None, *, may_pack: bool) -> Few:
    """How products of few rows with `weight` [N, K] are computed so that equal rows give equal bits in any company.

    Tried here and now, as `steady_heights` does. Packed, a height that does not agree with one row does not count.
    """
    rows = equal_rows(weight, HEIGHTS[0])
    if may_pack and weight.dtype == torch.float32 and weight.numel() >= LARGE and torch.backends.mkldnn.is_available():
        packed = pack(weight)
        heights = agreeing(rows, HEIGHTS, lambda x: _product(x, packed, bias))
        if heights and heights[-1] == 1:
            return Few(heights, True)
    return Few(agreeing(rows, HEIGHTS, lambda x: _plain(x[:, None], weight, bias)[:, 0]), False)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [R, 1, K] times weight [N, K], plus bias, in one call."""
    return F.linear(x if x.data_ptr() % ALIGNMENT == 0 else x.clone(), weight, bias)


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    if x.data_ptr() % ALIGNMENT:
        x = x.clone()
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _places(count: int, heights: Sequence[int]) -> list[tuple[int, int]]:
    places, start = [], 0
    for height in cut(count, heights):
        places.append((start, height))
        start += height
    return places
