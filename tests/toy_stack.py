"""A stack of tiny blocks that know their row, for tests of what runs stacks: caches, offload, others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut
from omnimuse.layers.stack import Block, BlockStack, Conditioning, Memory, PlainRunner

WIDTH = 8


@dataclass(frozen=True)
class ToyCond:
    """A layout and one vector per row."""

    layout: Layout
    shift: Tensor  # [R, WIDTH]

    @property
    def dense(self) -> bool:
        return self.layout.dense

    def select(self, rows: Sequence[int]) -> ToyCond:
        return ToyCond(self.layout.select(rows), torch.stack([self.shift[row] for row in rows]))

    def cut(self, part: Cut) -> ToyCond:
        return ToyCond(self.layout.cut(part), self.shift)

    def told(self) -> Tensor:
        """The shifts, to the block that runs."""
        return self.shift


@dataclass(frozen=True)
class CountingCond(ToyCond):
    """The same, and every block is told another multiple of the shifts: `ran` [1] counts those that have run."""

    ran: Tensor

    def select(self, rows: Sequence[int]) -> CountingCond:
        some = super().select(rows)
        return CountingCond(some.layout, some.shift, self.ran.clone())

    def after(self, blocks: int) -> CountingCond:
        return replace(self, ran=torch.full_like(self.ran, blocks))

    def told(self) -> Tensor:
        self.ran.add_(1)
        return self.shift * self.ran


class RowByRow(PlainRunner):
    """Runs every row alone, with conditioning of its own, as compiled blocks run rows that differ."""

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        run, layout = super().__call__, cond.layout
        parts = [run(blocks, layout.take(hidden, [n]), cond.select([n]))[0] for n in range(len(layout.lengths))]
        return layout.pack(parts)


class ToyBlock(Block[ToyCond]):
    """Mixes widths, adds the row's shift, and counts its runs. Fails when `broken` is set."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("gain", torch.rand(WIDTH, generator=generator))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.broken = False
        self.rows_run = 0

    def forward(self, hidden: Tensor, cond: ToyCond) -> Tensor:
        if self.broken:
            raise ArithmeticError("this block is broken")
        self.rows_run += len(cond.layout.lengths)
        return hidden + self.gain * self.linear(hidden + cond.layout.expand(cond.told())).tanh()

    def probe(self, hidden: Tensor, cond: ToyCond) -> Tensor:
        return self.linear(hidden + cond.layout.expand(cond.shift))


def toy_stack(blocks: int = 3, seed: int = 0) -> BlockStack:
    """The same weights for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return BlockStack(ToyBlock(generator) for _ in range(blocks)).requires_grad_(False)


def toy_rows(lengths: Sequence[int], seed: int = 1) -> tuple[list[Tensor], Tensor]:
    """Hidden states [S_i, WIDTH] of every row, and their shifts [R, WIDTH]."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    return parts, torch.randn(len(lengths), WIDTH, generator=generator)
