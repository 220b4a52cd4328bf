"""Blocks of one set of weights for text and image (`joint_stream.py`) that are shown pictures as well.

Every picture goes through the blocks alone, once: of each block its tokens' keys and values are kept, and what is drawn
attends to them as to tokens before its own.

Letters: S tokens, D width, E width of the time's vector, N heads, H head dim, L blocks, K tokens of pictures that are
shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from omnimuse.attention.layout import Layout
from omnimuse.components.joint_stream import JointBlock, JointCond, JointNetwork, JointStatic
from omnimuse.components.two_streams import TwoStreamInputs
from omnimuse.core.plans import Cut


@dataclass(frozen=True)
class ShownStatic(JointStatic):
    """The same, and what the pictures that are shown say, by block: `known` [L, K, 2, N, H], None without any."""

    known: Tensor | None


Static = TypeVar("Static", bound=ShownStatic)


@dataclass(frozen=True)
class ShownCond(JointCond):
    """What every block receives; of rows that are shown pictures also what these say, by block.

    `known` has keys and values of the tokens of pictures, [L, K, 2, N, H], for every row, and `keys` counts those of
    rows with them. `kept` takes them of one picture, [L, S, 2, N, H], which then stands alone. `block` [1] counts the
    blocks that have run: a tensor, so that compiled code is the same for all.
    """

    known: tuple[Tensor | None, ...] = ()
    keys: Layout | None = None
    kept: Tensor | None = None
    block: Tensor | None = None

    @property
    def dense(self) -> bool:
        """Whether rows are equally long, and not several with pictures of their own."""
        return super().dense and len(self.known) < 2

    def select(self, rows: Sequence[int]) -> ShownCond:
        if self.kept is not None:
            return self  # one picture, alone
        known = tuple(self.known[row] for row in rows) if self.known else ()
        return with_pictures(super().select(rows), known, self.block)

    def cut(self, part: Cut) -> ShownCond | None:
        """None where pictures have a say: their keys and values are no tokens of the rows, and lie whole everywhere."""
        return super().cut(part) if self.block is None else None

    def after(self, blocks: int) -> ShownCond:
        """The same for a run that begins behind so many blocks."""
        return self if self.block is None else replace(self, block=torch.full_like(self.block, blocks))

    def beside(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Layout]:
        """Keys and values of a block, and before them those of pictures that are shown; how they are packed."""
        if self.block is None:
            return k, v, self.layout
        if self.kept is not None:
            self.kept.index_copy_(0, self.block, torch.stack([k, v], dim=2))
        stored = [None if known is None else known.index_select(0, self.block)[0] for known in self.known]
        self.block.add_(1)
        if self.keys is None:
            return k, v, self.layout
        if self.dense:  # one row
            k, v = (
                torch.cat([*(kv[None, :, side] for kv in stored if kv is not None), x], dim=1)
                for side, x in enumerate((k, v))
            )
            return k, v, self.keys
        packed = []
        for side, x in enumerate((k, v)):
            rows = zip(stored, self.layout.unpack(x), strict=True)
            packed.append(self.keys.pack([x if kv is None else torch.cat([kv[:, side], x]) for kv, x in rows]))
        return packed[0], packed[1], self.keys


def with_pictures(cond: JointCond, known: tuple[Tensor | None, ...], block: Tensor | None = None) -> ShownCond:
    """`cond` of rows that are shown the pictures `known`, if any is, from the first block on or from `block`."""
    facts = (cond.layout, cond.text, cond.image, cond.rope, cond.vector)
    if all(each is None for each in known):
        return ShownCond(*facts, words=cond.words)
    counts = [0 if each is None else each.shape[1] for each in known]
    keys = Layout(tuple(own + more for own, more in zip(cond.layout.lengths, counts, strict=True)))
    start = torch.zeros(1, dtype=torch.int64, device=cond.vector.device) if block is None else block.clone()
    return ShownCond(*facts, words=cond.words, known=known, keys=keys, block=start)


class ShownNetwork(JointNetwork[Static]):
    """The same, of rows that may be shown pictures."""

    def keep(self, hidden: Tensor, rope: Tensor, vector: Tensor) -> Tensor:
        """The tokens [S, D] of a picture, their rotary table and the vector [1, E] of what scales them -> what it says:
        keys and values of its tokens, by block, [L, S, 2, N, H]. The picture sees nothing but itself.
        """
        blocks = self.stack.blocks()
        assert isinstance(blocks[0], JointBlock)
        heads = blocks[0].core.num_heads, blocks[0].core.head_dim
        kept = hidden.new_empty(len(blocks), len(hidden), 2, *heads)
        layout, start = Layout((len(hidden),)), torch.zeros(1, dtype=torch.int64, device=hidden.device)
        words = torch.zeros(1, len(hidden), 1, dtype=torch.bool, device=hidden.device)
        table = layout.pack([rope])
        cond = ShownCond(layout, layout, layout, table, vector, words=words, kept=kept, block=start)
        self.stack(layout.pack([hidden]), cond)
        return kept

    def _condition(self, rows: Sequence[TwoStreamInputs[Static]], image: Layout) -> ShownCond:
        return with_pictures(super()._condition(rows, image), tuple(row.static.known for row in rows))
