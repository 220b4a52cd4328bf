"""Blocks that are compiled in pieces: the same numbers, one code for all blocks, and nothing learnt of the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.stack import Block, PlainRunner
from tests.compiling import Counter
from tests.toy_stack import WIDTH, ToyCond


class Counted(Block[ToyCond]):
    """Adds to every row how long it is and which block this is, which a whole graph would learn."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.linear = nn.Linear(WIDTH, WIDTH)

    def made(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()

    pieces = (made,)

    def forward(self, hidden: Tensor, cond: ToyCond) -> Tensor:
        [made] = map(self.piece, self.pieces)
        rows = cond.layout.unpack(made(self, hidden))
        return hidden + cond.layout.pack([row + len(row) + self.number for row in rows])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_pieces_are_compiled_once_for_all_blocks_rows_and_sizes_and_run_as_they_are_where_that_is_asked() -> None:
    torch._dynamo.reset()
    blocks, counter, plainly = [Counted(number).requires_grad_(False) for number in range(12)], Counter(), False
    runner = CompiledRunner(blocks, counter, changed=lambda: plainly)
    for lengths in ((5, 3), (4,), (2, 6, 7)):
        cond = ToyCond(Layout(lengths), torch.zeros(len(lengths), WIDTH))
        hidden = torch.randn(1, sum(lengths), WIDTH)
        torch.testing.assert_close(runner(blocks, hidden, cond), PlainRunner()(blocks, hidden, cond))
        assert counter.graphs == 1
    assert all(block.compiled for block in blocks)
    plainly = True
    runner(blocks, hidden, cond)
    assert not any(block.compiled for block in blocks)
