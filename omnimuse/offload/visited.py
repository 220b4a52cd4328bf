"""Layerwise offload of networks that are a library's: its lists of equal blocks, each block there only while it runs.

A library calls its blocks itself, so each is stood in for by a module that brings the weights in first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from omnimuse.offload.parcels import Parcel

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def block_lists(module: nn.Module) -> list[nn.ModuleList]:
    """The outermost lists of at least two blocks of one kind, in which nearly all weights of such networks are. Those
    with convolutions are small, and an autoencoder runs them for every tile.
    """
    found: list[nn.ModuleList] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(block) for block in child}) == 1:
            found += [] if any(isinstance(part, CONVOLUTIONS) for part in child.modules()) else [child]
        else:
            found += block_lists(child)
    return found


class Visited(nn.Module):
    """A block of a library, and the parcel that has its weights. It has the same parts under the same names; what is
    asked of it besides is asked of the block, and to the library it is of the block's class.
    """

    def __init__(self, block: nn.Module, parcel: Parcel, following: Parcel) -> None:
        super().__init__()
        self.__dict__.update(_modules=block._modules, _parameters=block._parameters, _buffers=block._buffers)
        self.__dict__.update(block=block, parcel=parcel, following=following, training=block.training)
        self.__dict__["forward"] = self._there()(block)  # the block alone knows what it takes

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["block"]) if "block" in self.__dict__ else Visited

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    @contextmanager
    def _there(self) -> Iterator[None]:
        """For the length of a `with` block, or of every call of what it decorates, the weights are in."""
        with self.parcel.visiting():
            self.following.store.expect(self.following.arena)
            yield


def visit(blocks: nn.ModuleList, parcels: dict[nn.Module, Parcel]) -> None:
    """Put those in the place of the `blocks` of one list, once their weights wait in parcels."""
    own = list(blocks)
    following = [*own[1:], own[0]]
    for place, (block, after) in enumerate(zip(own, following, strict=True)):
        blocks[place] = Visited(block, parcels[block], parcels[after])
