"""Regional compilation: a stack runner that runs each block, or the pieces of each, through `torch.compile`.

A build pass sets it as a stack's innermost runner. One kind of block is compiled twice for all sizes and all blocks of
that kind, for one row and for several, and once more where parts of a row may have times of their own; so is a piece,
but that it knows no rows: for one token and for several. Shapes stay symbolic, and weights are inputs of the compiled
code. The first run takes tens of seconds; torch keeps what it compiled on disk (`worker/compiler.py` says where), so
later processes start faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.layers.stack import Block, Memory, Piece

Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., Any]]
"""What torch gives every graph that it has found to, for something that computes it."""


class CompiledRunner:
    """Runs blocks compiled. Rows that are alike share a run; others run one after the other, so that one form of the
    code serves all requests. `backend` makes the code. While `changed` says so, blocks do something else than what was
    compiled, and run as they are; compiled ones run `within` what it gives. They are compiled `whole`, or else in parts
    around what says that it is not compiled; of blocks that have pieces, these are, once for all blocks, and all rows
    share a run.
    """

    def __init__(
        self,
        blocks: Sequence[Block[Any]],
        backend: str | Backend = "inductor",
        changed: Callable[[], bool] = lambda: False,
        whole: bool = True,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.changed = changed
        self.within = within
        make = partial(torch.compile, dynamic=True, backend=backend)
        self.compiled: dict[nn.Module, Any] = {
            block: make(block, fullgraph=whole) for block in blocks if not block.pieces
        }
        self.plain = {block: Plain(block) for block in self.compiled}
        pieces = dict.fromkeys(piece for block in blocks for piece in block.pieces)
        self.pieces = {piece: partial(_told, make(piece, fullgraph=True)) for piece in pieces}

    def __call__(
        self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Any, memories: Sequence[Memory] | None = None
    ) -> Tensor:
        if self.changed():
            return _run([self.plain.get(block, block) for block in blocks], hidden, cond)
        if self.pieces:
            with self.within():
                return _run(blocks, hidden, cond, self.pieces)
        if cond.dense:
            _tell_sizes(vars(cond).values())
            with self.within():
                for block in blocks:
                    _tell_sizes([hidden])
                    hidden = self.compiled[block](hidden, cond)
            return hidden
        # Copies, even of one row: a view begins anywhere in its memory, and the compiler would tell such inputs apart.
        rows = range(len(cond.layout.lengths))
        parts = [self(blocks, cond.layout.take(hidden, [row]), cond.select([row])) for row in rows]
        return cond.layout.pack([part[0] for part in parts])

    @property
    def instead(self) -> dict[nn.Module, tuple[nn.Module, ...]]:
        """What is called for a block, one of them at a time."""
        return {block: (compiled, self.plain[block]) for block, compiled in self.compiled.items()}

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Any) -> Tensor:
        return blocks[0].probe(hidden, cond)


class Plain(nn.Module):
    """Calls a block that is compiled elsewhere as it is. Who watches it stands here: on the block itself, that would be
    compiled with it.
    """

    compiled: Mapping[Piece, Piece]

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)  # which is no part of it

    def forward(self, hidden: Tensor, cond: Any) -> Any:
        return self._block[0](hidden, cond)


def _run(
    blocks: Sequence[Block[Any] | Plain],
    hidden: Tensor,
    cond: Any,
    pieces: Mapping[Piece, Piece] = MappingProxyType({}),
) -> Tensor:
    """Run blocks as they are, but for the `pieces` that are compiled."""
    for block in blocks:
        block.compiled = pieces
        hidden = block(hidden, cond)
    return hidden


def _told(compiled: Piece, *given: nn.Module | Tensor) -> Any:
    """What that piece makes of what it is given; the compiler is told which sizes of this are the model's."""
    _tell_sizes(given)
    return compiled(*given)


def _tell_sizes(values: Iterable[object]) -> None:
    """Tell the compiler which sizes are the model's, and that the others, of rows and tokens, have nothing in common.

    It would take sizes that are equal when it first looks, say two rows and a last dimension of 2, or two rows and two
    spans, for one size, and compile again when they are not.
    """
    for value in values:
        if isinstance(value, Tensor):
            widths = min(value.ndim - 1, 2)
            for dim in range(value.ndim):
                (torch._dynamo.maybe_mark_dynamic if dim < widths else torch._dynamo.mark_static)(value, dim)
