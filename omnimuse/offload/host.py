"""The store beside an accelerator: pinned host memory, and two slots on the device that blocks take turns in.

While a block runs in one slot, the next one is copied into the other. A whole component is copied beside what is
computed, too, where there is room for it on the device before the one before has left.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from omnimuse.offload.stores import FileStore, Store, closed

SPARE = 2
"""Times its own size that must be free on the device for what is copied there ahead of its turn."""
NOTHING = -1
"""The arena of a slot into which none was copied."""


@dataclass(eq=False)
class Slot:
    """Memory on the device, and which arena was last copied into it."""

    content: Tensor
    arena: int = NOTHING


class Lanes(Protocol):
    """Two queues of work on a device, copies and computations, and what one must wait for in the other."""

    def pinned(self, size: int) -> Tensor:
        """Bytes in host memory that can be copied beside computations."""
        ...

    def slot(self, size: int) -> Slot:
        """Bytes on the device."""
        ...

    def fetch(self, waiting: Tensor) -> Tensor:
        """A copy on the device, in order with the computations."""
        ...

    def write(self, slot: Slot, waiting: Tensor) -> None:
        """Copy into the slot beside the computations, after those that still read it."""
        ...

    def begin(self, slot: Slot) -> None:
        """What is computed from here on reads the slot, after it was written."""
        ...

    def end(self, slot: Slot) -> None:
        """What is computed from here on does not read the slot."""
        ...

    def room(self) -> int:
        """Bytes that nobody uses on the device."""
        ...

    def forget(self, slot: Slot) -> None:
        """The slot is not written again; whoever has its content may let it go once it was written."""
        ...

    def close(self) -> None:
        """No pinned memory is needed any more."""
        ...


class DeviceLanes:
    """The lanes of an accelerator.

    A block must run after its slot was written, and a slot be written after the block before has run: one event each
    per slot, made once and recorded again, for which only the device waits; the host never does. The allocator need not
    be told which stream uses a slot: it stays, or computations wait until it is written before its memory goes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.Stream(device=device)
        self._written: dict[Slot, torch.Event] = {}
        self._read: dict[Slot, torch.Event] = {}
        self._registered: list[Tensor] = []

    def pinned(self, size: int) -> Tensor:
        """Pages of our own that CUDA pins as they are: torch would pin the next power of two. Elsewhere torch pins."""
        if self._device.type != "cuda":
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pages = torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), size, 0)))
        self._registered.append(pages)
        return pages

    def slot(self, size: int) -> Slot:
        slot = Slot(torch.empty(size, dtype=torch.uint8, device=self._device))
        self._written[slot], self._read[slot] = torch.Event(self._device), torch.Event(self._device)
        self.end(slot)  # after what was computed in this memory before
        return slot

    def fetch(self, waiting: Tensor) -> Tensor:
        return waiting.to(self._device, non_blocking=True)

    def write(self, slot: Slot, waiting: Tensor) -> None:
        self._copies.wait_event(self._read[slot])
        with self._copies:
            slot.content[: len(waiting)].copy_(waiting, non_blocking=True)
        self._written[slot].record(self._copies)

    def begin(self, slot: Slot) -> None:
        torch.accelerator.current_stream(self._device).wait_event(self._written[slot])

    def end(self, slot: Slot) -> None:
        self._read[slot].record(torch.accelerator.current_stream(self._device))

    def room(self) -> int:
        kept = torch.accelerator.memory_reserved(self._device) - torch.accelerator.memory_allocated(self._device)
        free, _ = torch.accelerator.get_memory_info(self._device)
        return int(free + kept)

    def forget(self, slot: Slot) -> None:
        self.begin(slot)
        del self._written[slot], self._read[slot]

    def close(self) -> None:
        torch.accelerator.synchronize(self._device)  # copies may still be under way
        for pages in self._registered:
            torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())))
        self._registered.clear()
        self._written.clear()  # they know the slots, whose memory is free now
        self._read.clear()


class HostStore:
    """Arenas in pinned memory, one allocation each."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._waiting: list[Tensor] = []
        self._largest = 1
        self._slots: list[Slot] = []  # the one that was lent longest ago first
        self._ahead: dict[int, Slot] = {}

    def add(self, size: int, *, lent: bool) -> int:
        self._waiting.append(self._lanes.pinned(max(size, 1)))
        self._largest = max(self._largest, size if lent else 1)
        return len(self._waiting) - 1

    def content(self, arena: int) -> Tensor:
        if arena >= len(self._waiting):
            raise closed()
        return self._waiting[arena]

    def fetch(self, arena: int) -> Tensor:
        waiting = self.content(arena)
        if (slot := self._ahead.pop(arena, None)) is None:
            return self._lanes.fetch(waiting)
        self._lanes.forget(slot)
        return slot.content

    @contextmanager
    def lend(self, arena: int) -> Iterator[Tensor]:
        self.expect(arena)
        slot = next(slot for slot in self._slots if slot.arena == arena)
        self._slots.remove(slot)
        self._slots.append(slot)
        self._lanes.begin(slot)
        try:
            yield slot.content[: len(self._waiting[arena])]
        finally:
            self._lanes.end(slot)

    def expect(self, arena: int) -> None:
        """Into the slot that is not lent."""
        waiting = self.content(arena)
        while len(self._slots) < 2:  # where there is no room for the second, the first is there for the next try
            self._slots.append(self._lanes.slot(self._largest))
        if all(slot.arena != arena for slot in self._slots):
            self._slots[0].arena = NOTHING  # until all of it is written
            self._lanes.write(self._slots[0], waiting)
            self._slots[0].arena = arena

    def read_ahead(self, arena: int) -> None:
        """Onto the device beside what is computed, if there is room for it and for as much again."""
        waiting = self.content(arena)
        if arena in self._ahead or self._lanes.room() < SPARE * len(waiting):
            return
        try:
            slot = self._lanes.slot(len(waiting))
        except torch.OutOfMemoryError:  # in pieces that are too small; it comes when others have left
            return
        self._lanes.write(slot, waiting)
        self._ahead[arena] = slot

    def drop(self, arena: int) -> None:
        """And the slot that has it, in which blocks have taken turns."""
        held = [slot for slot in self._slots if slot.arena == arena]
        self._slots = [slot for slot in self._slots if slot.arena != arena]
        for slot in (*held, *([self._ahead.pop(arena)] if arena in self._ahead else [])):
            self._lanes.forget(slot)

    def close(self) -> None:
        self._lanes.close()
        self._waiting.clear()
        self._slots.clear()
        self._ahead.clear()


def store_beside(device: torch.device, folder: Path | None = None) -> Store:
    """Where weights wait that `device` computes with; beside a CPU in a file in `folder`."""
    return FileStore(folder) if device.type == "cpu" else HostStore(DeviceLanes(device))
