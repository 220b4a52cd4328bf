"""Where offloaded weights wait, and how they come in. `layerwise.py` puts blocks of weights here under a key.

Two stores: pinned host memory beside an accelerator, and files for computing on a CPU. Knows tensors, not
modules.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.errors import ConfigError

Weights = dict[str, Tensor]


class Store(Protocol):
    """Keeps blocks of weights and lends them out one at a time."""

    def put(self, key: str, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of these weights."""
        ...

    def bring(self, key: str) -> AbstractContextManager[Weights]:
        """The weights on the compute device, for the length of a `with` block; a private copy."""
        ...

    def expect(self, key: str) -> None:
        """A hint that this block is wanted next: a store may begin to fetch it."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class FolderStore:
    """One safetensors file per key, in a private folder under `folder` (default: the system's temporary one).

    Raises ConfigError if the folder cannot be written to. The files go at `close`, or with this object.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="omnimuse-offload-", dir=folder))
        except OSError as error:
            raise ConfigError(f"offload folder={folder} cannot be used ({error}); choose another") from error
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def put(self, key: str, weights: Mapping[str, Tensor]) -> None:
        copies = {name: tensor.cpu().contiguous().clone() for name, tensor in weights.items()}
        try:
            save_file(copies, self._path(key))
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"offload folder={self._folder} cannot take the weights ({error}); choose another"
            ) from error

    @contextmanager
    def bring(self, key: str) -> Iterator[Weights]:
        # Copied out of the file: there tensors begin anywhere, and matrix libraries round as the alignment has it.
        yield {name: tensor.clone() for name, tensor in load_file(self._path(key)).items()}

    def expect(self, key: str) -> None:
        """Nothing to do: the system reads ahead."""

    def close(self) -> None:
        self._remove()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


class HostStore:
    """Pinned host memory. Copies run on their own stream; at most two blocks are on the device at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.Stream(device=device)
        self._host: dict[str, Weights] = {}
        self._coming: dict[str, tuple[Weights, torch.Event]] = {}
        self._used: deque[torch.Event] = deque()

    def put(self, key: str, weights: Mapping[str, Tensor]) -> None:
        self._host[key] = {name: tensor.cpu().pin_memory() for name, tensor in weights.items()}

    @contextmanager
    def bring(self, key: str) -> Iterator[Weights]:
        self.expect(key)
        weights, arrived = self._coming.pop(key)
        current = torch.accelerator.current_stream(self._device)
        current.wait_event(arrived)
        for tensor in weights.values():
            tensor.record_stream(current)  # its memory is not reused before this stream is done with it
        try:
            yield weights
        finally:
            weights.clear()
            self._used.append(current.record_event())

    def expect(self, key: str) -> None:
        if key in self._coming:
            return
        while len(self._used) > 1:  # the block before the last one: wait until it has left the device
            self._used.popleft().synchronize()
        with self._stream:
            weights = {name: tensor.to(self._device, non_blocking=True) for name, tensor in self._host[key].items()}
        self._coming[key] = (weights, self._stream.record_event())

    def close(self) -> None:
        self._coming.clear()
        self._host.clear()
