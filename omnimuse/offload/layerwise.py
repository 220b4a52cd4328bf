"""Layerwise offload: the weights of a stack are on the compute device only while their block runs.

A build pass sets a `LayerwiseOffload` as the runner of a stack whose weights wait in parcels (`offload/parcels.py`),
around what runs a block that is in. Results are bit for bit those of a resident stack, and a block that fails changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from omnimuse.layers.stack import Block, Conditioning, Memory, PlainRunner, StackRunner, behind
from omnimuse.offload.parcels import Parcel


class LayerwiseOffload:
    """A stack runner that brings in one block at a time, while the one before it still runs if the store can; `inner`
    runs it.
    """

    def __init__(self, parcels: Mapping[nn.Module, Parcel]) -> None:
        self.inner: StackRunner = PlainRunner()
        self._parcels = parcels
        self._places = {block: place for place, block in enumerate(parcels)}
        blocks = list(parcels)
        self._following = dict(zip(blocks, [*blocks[1:], *blocks[:1]], strict=True))  # after the last, the next step's

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        for block in blocks:
            with self.visiting(block):
                self._expect(self._following[block])
                hidden = self.inner([block], hidden, behind(cond, self._places[block]))
        return hidden

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        with self.visiting(blocks[0]):
            return blocks[0].probe(hidden, cond)

    def visiting(self, block: nn.Module) -> AbstractContextManager[None]:
        """The weights of one block are in for the length of a `with` block."""
        return self._parcels[block].visiting()

    def _expect(self, block: nn.Module) -> None:
        parcel = self._parcels[block]
        parcel.store.expect(parcel.arena)
