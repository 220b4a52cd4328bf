"""Weights as other libraries have packed them, in safetensors files: found by headers, read as rows of ours.

Each library's layout is a module (`bitsandbytes`, `torchao`), which makes `Packed` of what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.quant.packings import Rows

FLOATS = "F32"
"""The kind of packed weights that none of our packings can hold: they become floats when they are read."""
SIZES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I32": 4, "BF16": 2, "F16": 2, "F32": 4}
"""Bytes of a number, by what safetensors calls its format."""


@dataclass(frozen=True)
class Packed:
    """Weights in a file: the name of our packing, the shape that they stand for, the names of their tensors by role,
    and what makes of the open file's tensors the rows that we have, or floats where these cannot be had.
    """

    kind: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    read: Callable[[Any, Packed], Tensor | Rows]

    def content(self, handle: Any) -> Tensor | Rows:
        """What is stored of them in the file that is open as `handle`."""
        return self.read(handle, self)


def check(
    handle: Any, kinds: Mapping[str, str], library: str, expected: Mapping[str, tuple[Sequence[str], int]]
) -> None:
    """ModelError unless every tensor is there in one of the formats and has so many bytes."""
    for name, (formats, size) in expected.items():
        there = "is not there"
        if name in kinds:
            have = prod(handle.get_slice(name).get_shape()) * SIZES.get(kinds[name], 0)
            if kinds[name] in formats and have == size and size:
                continue
            there = f"is {have} bytes of {kinds[name]}"
        wanted = f"{size} bytes of {' or '.join(formats)}"
        raise ModelError(f"{name} {there}, and what {library} packed has {wanted} there; get the file again")
