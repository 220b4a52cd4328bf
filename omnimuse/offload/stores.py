"""Where the bytes of absent weights wait, and how they come in: arenas, one per group that comes and goes together.

Here: what a store is, and the one for computing on a CPU, a file; beside an accelerator see `host.py`. Stores know
bytes; which tensor is where in an arena is known to `parcels.py`.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import ConfigError, EngineDeadError, reason

PAGE = mmap.ALLOCATIONGRANULARITY
CHUNK = 2**24  # bytes


class Store(Protocol):
    """Keeps arenas of bytes, by number, and brings them to the device. Bytes are tensors uint8 [size]."""

    def add(self, size: int, *, lent: bool) -> int:
        """A new arena, its content still to be written, for `lend` or for `fetch`; returns its number.

        ConfigError if there is no room.
        """
        ...

    def content(self, arena: int) -> Tensor:
        """The arena where it waits, to be written."""
        ...

    def fetch(self, arena: int) -> Tensor:
        """A copy on the device, which is the caller's to keep."""
        ...

    def lend(self, arena: int) -> AbstractContextManager[Tensor]:
        """A copy on the device for the length of a `with` block; another arena may take its place afterwards."""
        ...

    def expect(self, arena: int) -> None:
        """A hint that `lend` is called for this arena next, while the one before it may still be lent."""
        ...

    def read_ahead(self, arena: int) -> None:
        """A hint that `fetch` is called for this arena soon; takes memory on the device only where much is free."""
        ...

    def drop(self, arena: int) -> None:
        """What was read ahead of this arena is not wanted now, and takes no memory on the device any more."""
        ...

    def close(self) -> None:
        """Let go of everything; no arena can be had any more."""
        ...


def check_folder(folder: Path | None, device: torch.device) -> None:
    """ConfigError where no weights that `device` computes with can wait in that folder, which is not made."""
    if device.type == "cpu":
        FileStore(folder, make=False).close()
    elif folder is not None:
        raise ConfigError(
            f"offload folder={folder} would not be used: beside {device} weights wait in host memory; "
            "leave the folder out"
        )


class FileStore:
    """One file without a name in `folder` (default: the system's temporary one), an arena after the other.

    The system removes such a file with the process that holds it, however that ends. A folder that is not there is made
    or, if `make` says no, the nearest one above it has the file. ConfigError for one that cannot be written to.
    """

    def __init__(self, folder: Path | None = None, *, make: bool = True) -> None:
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._called, self._other = f"offload folder={folder}", "choose another"
        if folder is None:
            self._called = f"the system's folder for temporary files, {self.folder},"
            self._other = "choose another with TMPDIR"
        try:
            if make:
                self.folder.mkdir(parents=True, exist_ok=True)
            near = next(each for each in (self.folder, *self.folder.absolute().parents) if each.exists())
            with tempfile.TemporaryFile(dir=near) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            raise ConfigError(f"{self._called} cannot be used ({reason(error)}); {self._other}") from error
        self._release = weakref.finalize(self, os.close, self._file)
        self._places: list[tuple[int, int]] = []  # offset, size
        self._end = 0

    def add(self, size: int, *, lent: bool) -> int:
        place = (self._end, max(size, 1))
        self._end += -(-place[1] // PAGE) * PAGE
        try:
            _reserve(self._file, *place)
        except OSError as error:
            raise ConfigError(
                f"{self._called} has no room for {told_bytes(size)} of weights ({reason(error)}); "
                f"make room or {self._other}"
            ) from error
        self._places.append(place)
        return len(self._places) - 1

    def content(self, arena: int) -> Tensor:
        """Pages of the file: what is written goes there, and is no memory of this process's own."""
        offset, size = self._place(arena)
        return torch.frombuffer(mmap.mmap(self._file, size, offset=offset), dtype=torch.uint8)

    def fetch(self, arena: int) -> Tensor:
        """In pages of its own, which go back to the system with it; what a process frees otherwise, it may keep."""
        _, size = self._place(arena)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        content = torch.frombuffer(pages, dtype=torch.uint8)
        self._read(arena, content)
        return content

    @contextmanager
    def lend(self, arena: int) -> Iterator[Tensor]:
        _, size = self._place(arena)
        content = torch.empty(size, dtype=torch.uint8)
        self._read(arena, content)
        yield content

    def expect(self, arena: int) -> None:
        self.read_ahead(arena)

    def read_ahead(self, arena: int) -> None:
        if sys.platform == "linux":  # elsewhere the system guesses for itself
            os.posix_fadvise(self._file, *self._place(arena), os.POSIX_FADV_WILLNEED)

    def drop(self, arena: int) -> None:
        """Nothing: what was read is the system's, which gives it up by itself."""

    def close(self) -> None:
        self._places.clear()
        self._release()

    def _read(self, arena: int, into: Tensor) -> None:
        (offset, size), view, done = self._place(arena), into.numpy().data, 0
        while done < size:
            count = os.preadv(self._file, [view[done:]], offset + done)
            if not count:
                raise EngineDeadError(f"the file of offloaded weights in {self.folder} was cut; start a new engine")
            done += count

    def _place(self, arena: int) -> tuple[int, int]:
        if not self._release.alive:
            raise closed()
        return self._places[arena]


def _reserve(file: int, offset: int, size: int) -> None:
    """Room on the disk: on a full one, writing to mapped pages would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, offset, size)
        return
    for start in range(0, size, CHUNK):
        os.pwrite(file, bytes(min(CHUNK, size - start)), offset + start)


def closed() -> EngineDeadError:
    """The error of a store that was closed."""
    return EngineDeadError("the weights of this network were released by close(); start a new engine")
