"""Blocks of a network that wait outside of the device for one forward: the last thing to try where memory ran out.

Used by `forwards.py` when a single row does not fit beside the whole network. The weights of blocks go where those of
offloaded ones wait, come in one block at a time, and are back afterwards, to the bit, as soon as there is room.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from omnimuse.cache.stepcache import StepCache
from omnimuse.layers.few import FewLinear
from omnimuse.layers.network import Network
from omnimuse.layers.stack import BlockStack, PlainRunner
from omnimuse.offload.host import store_beside
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.parcels import Parcel
from omnimuse.offload.residency import Residency
from omnimuse.worker.failures import free_memory
from omnimuse.worker.rest import written


def can_wait(components: Residency, name: str) -> bool:
    """Whether blocks of that network can wait: those on one device, that nobody has compiled or offloaded."""
    network = components.wherever(name)
    return (
        isinstance(network, Network)
        and components.stays(name)
        and not any(isinstance(part, FewLinear) for part in network.modules())  # keeps its weights in another form
        and all(type(_innermost(stack)[1]) is PlainRunner for stack in network.stacks().values())
    )


class Aside:
    """The blocks of `network` outside of the `device`, on which they are only while they run."""

    def __init__(self, network: Network, device: torch.device) -> None:
        self._network, self._device = network, device
        self._store = store_beside(device)
        try:
            self._parcels = {block: written(block, self._store, lent=True) for block in network.all_blocks()}
        except BaseException:
            self._store.close()
            raise
        for parcel in self._parcels.values():
            parcel.leave()
        free_memory(device)
        for stack in network.stacks().values():
            owner, _ = _innermost(stack)
            _set(owner, LayerwiseOffload({block: self._parcels[block] for block in stack.blocks()}))

    def end(self) -> None:
        """All blocks are back; where memory runs out before, it is raised, and they go on as they did."""
        for parcel in self._parcels.values():
            self._store.drop(parcel.arena)
        try:
            for parcel in self._parcels.values():
                _back(parcel, self._device)
        except BaseException:
            for parcel in self._parcels.values():
                parcel.leave()
            raise
        for stack in self._network.stacks().values():
            owner, _ = _innermost(stack)
            _set(owner, PlainRunner())
        self._store.close()

    def close(self) -> None:
        """Let go of what waits; nothing comes back."""
        self._store.close()


def _back(parcel: Parcel, device: torch.device) -> None:
    """The weights in memory of their own, as they were before they waited."""
    content = parcel.store.content(parcel.arena)
    for entry in parcel.entries.values():
        like = entry.absent
        tensor = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
        tensor.copy_(entry.of(content))
        entry.put(nn.Parameter(tensor, requires_grad=False) if isinstance(like, nn.Parameter) else tensor)


def _innermost(stack: BlockStack) -> tuple[BlockStack | StepCache, Any]:
    """Who has the runner that runs the blocks themselves, and that."""
    return (stack.runner, stack.runner.inner) if isinstance(stack.runner, StepCache) else (stack, stack.runner)


def _set(owner: BlockStack | StepCache, runner: LayerwiseOffload | PlainRunner) -> None:
    if isinstance(owner, StepCache):
        owner.inner = runner
    else:
        owner.runner = runner
