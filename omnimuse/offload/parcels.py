"""A parcel: tensors of a module that come to the device and leave it together, and how they lie in their arena.

`Away` is the home of one component whose weights wait outside the device: a parcel per block, if its blocks come in one
at a time, and one for all the rest. The loader writes straight into it. The tensors of a module that is not in are meta
tensors: they keep shape, dtype and order, and cannot be computed with by mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.offload.stores import Store

ALIGNMENT = 64
"""Bytes: where torch lets a tensor's memory begin on a CPU. Matrix libraries round as the alignment has it, so tensors
in an arena begin there, too, and results are equal to the bit."""

Stored = Mapping[str, tuple[Tensor, tuple[str, ...]]]
"""A module's parameters and persistent buffers: first name -> (meta tensor, every name)."""


@dataclass(frozen=True)
class Entry:
    """One tensor: where it is in the module (several places if it is tied), and where in the arena."""

    absent: Tensor  # on meta
    spots: tuple[tuple[nn.Module, str], ...]
    offset: int

    def of(self, arena: Tensor) -> Tensor:
        """This tensor as a view of its arena's bytes."""
        like, size = self.absent, self.absent.numel() * self.absent.element_size()
        flat = arena[self.offset : self.offset + size].view(like.dtype)
        return flat.as_strided(like.shape, like.stride())

    def put(self, tensor: Tensor) -> None:
        """Make `tensor` what the module has."""
        for owner, key in self.spots:
            setattr(owner, key, tensor)


class Parcel:
    """The tensors `stored` of a module and their arena in `store`; `lent` for a block that comes in while it runs."""

    def __init__(self, module: nn.Module, stored: Stored, store: Store, *, lent: bool) -> None:
        self.entries: dict[str, Entry] = {}
        self.size = 0
        for name, (tensor, names) in stored.items():
            spots = tuple((module.get_submodule(each.rpartition(".")[0]), each.rpartition(".")[2]) for each in names)
            self.entries[name] = Entry(tensor, spots, self.size)
            self.size += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        self.store = store
        self.arena = store.add(self.size, lent=lent)
        self.inside = False

    def enter(self) -> None:
        """Bring the weights in, to stay until `leave`."""
        self._place(self.store.fetch(self.arena))

    def leave(self) -> None:
        """Let the weights go: what waits outside is as it was."""
        for entry in self.entries.values():
            entry.put(entry.absent)
        self.inside = False

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """The weights are in for the length of a `with` block."""
        with self.store.lend(self.arena) as content:
            self._place(content)
            try:
                yield
            finally:
                self.leave()

    def _place(self, content: Tensor) -> None:
        for entry in self.entries.values():
            tensor = entry.of(content)
            if isinstance(entry.absent, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            entry.put(tensor)
        self.inside = True


class Away:
    """The home of one component outside `device`: `rest` comes in as a whole, each of `blocks` while it runs."""

    waits = True

    def __init__(
        self, module: nn.Module, stored: Stored, device: torch.device, store: Store, blocks: Sequence[nn.Module] = ()
    ) -> None:
        self.device = device
        inside = {id(part): block for block in blocks for part in block.modules()}
        shares: dict[Any, dict[str, tuple[Tensor, tuple[str, ...]]]] = {None: {}, **{block: {} for block in blocks}}
        for name, (tensor, names) in stored.items():
            owners = {inside.get(id(module.get_submodule(each.rpartition(".")[0]))) for each in names}
            owner = owners.pop() if len(owners) == 1 else None  # what several share is with the rest
            shares[owner][name] = (tensor, names)
        self.rest = Parcel(module, shares[None], store, lent=False)
        self.blocks = {block: Parcel(module, shares[block], store, lent=True) for block in blocks}
        self._parcels = {name: parcel for parcel in (self.rest, *self.blocks.values()) for name in parcel.entries}
        self._contents: dict[int, Tensor] = {}

    def space(self, name: str, like: Tensor) -> Tensor:
        """Where the content of the tensor called `name` is to be written."""
        parcel = self._parcels[name]
        if parcel.arena not in self._contents:
            self._contents[parcel.arena] = parcel.store.content(parcel.arena)
        return parcel.entries[name].of(self._contents[parcel.arena])

    def seal(self) -> None:
        """Everything is written."""
        self._contents.clear()
