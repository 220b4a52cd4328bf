"""What an open file holds under one name, whole or in part, and how it is written to its place. Used by `weights`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omnimuse.loader.filling import Space
from omnimuse.loader.headers import Stored
from omnimuse.quant.linear import PackedRows
from omnimuse.quant.packings import Rows


@dataclass(frozen=True)
class Source:
    """The tensor `name` in the open safetensors file `handle`; `stored` is what its header says of it."""

    handle: Any
    name: str
    stored: Stored

    def whole(self) -> Tensor | Rows:
        """All of it."""
        if self.stored.foreign is not None:
            return self.stored.foreign.content(self.handle)
        if self.stored.parts:
            return self._rows(slice(None))
        tensor: Tensor = self.handle.get_tensor(self.name)
        return tensor

    def part(self, dim: int, start: int, stop: int) -> Tensor | Rows:
        """What is from `start` to `stop` along `dim`; of packed weights, a part of the columns becomes floats."""
        where = (slice(None),) * dim + (slice(start, stop),)
        if not self.stored.parts:
            tensor: Tensor = self.handle.get_slice(self.name)[where]
            return tensor
        content = self._rows(where[0]) if self.stored.foreign is None and dim == 0 else self.whole()
        if isinstance(content, Tensor):
            return content[where]
        if dim != 0:
            return content.floats()[where]
        return content if self.stored.foreign is None else content.some(where[0])

    def _rows(self, some: slice) -> Rows:
        slices = {part: self.handle.get_slice(name) for part, name in self.stored.parts.items()}
        return Rows(self.stored.kind, self.stored.shape[1], {part: each[some] for part, each in slices.items()})


def put(content: Tensor | Rows, into: Space) -> None:
    """Write it: packed rows as they are where they are wanted so, otherwise as floats."""
    if isinstance(content, Tensor):
        into.copy_(content)
    elif isinstance(into, PackedRows):
        into.put(content)
    else:
        into.copy_(content.floats())
