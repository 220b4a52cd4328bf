"""Regional compilation: a stack runner that runs each block through `torch.compile`.

A build pass sets it as a stack's innermost runner. One kind of block is compiled once for all sizes and all blocks of
that kind, because shapes stay symbolic and weights are inputs of the compiled code. The first run takes tens of
seconds; torch keeps what it compiled on disk, so later processes start faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omnimuse.layers.stack import Block, Memory


class CompiledRunner:
    """Runs blocks compiled. Rows of equal length share a run; others run one after the other, so that one form of the
    code serves all requests.
    """

    def __init__(self, blocks: Sequence[Block[Any]]) -> None:
        self._compiled: dict[Block[Any], Callable[[Tensor, Any], Tensor]] = {
            block: torch.compile(block, dynamic=True, fullgraph=True) for block in blocks
        }

    def __call__(
        self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Any, memories: Sequence[Memory] | None = None
    ) -> Tensor:
        if cond.layout.dense:
            for block in blocks:
                hidden = self._compiled[block](hidden, cond)
            return hidden
        rows = range(len(cond.layout.lengths))
        parts = [self(blocks, cond.layout.take(hidden, [row]), cond.select([row])) for row in rows]
        return cond.layout.pack([part[0] for part in parts])

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Any) -> Tensor:
        return blocks[0].probe(hidden, cond)
