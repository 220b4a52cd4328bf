"""Every packing that weights in a file may have, by its name: the schemes that are asked for, and what others write.

And packed rows, as a file holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from omnimuse.quant.blocks import BLOCKS
from omnimuse.quant.codes import CODES, GROUPED, MICRO
from omnimuse.quant.schemes import SCHEMES, Fp8, Int4, Packing, Parts

WIDE_FP8 = "fp8-e5m2"
NARROW_INT4 = "int4-32"
"""Floats of 8 bits with five for the exponent, four bits with a scale for every 32 inputs: read, never chosen here."""

PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {
        **SCHEMES,
        WIDE_FP8: Fp8(kind=torch.float8_e5m2),
        NARROW_INT4: Int4(group=32),
        **BLOCKS,
        **CODES,
        **MICRO,
        **GROUPED,
    }
)


@dataclass(frozen=True)
class Rows:
    """Rows of weights, packed: the name of the packing, how many inputs they have, and their parts."""

    packing: str
    inputs: int
    parts: Parts

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return len(self.parts["weight"]), self.inputs

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(part.nbytes for part in self.parts.values())

    def some(self, which: slice) -> Rows:
        """Some of them."""
        return Rows(self.packing, self.inputs, {name: part[which] for name, part in self.parts.items()})

    def floats(self) -> Tensor:
        """What they stand for, in float32."""
        return PACKINGS[self.packing].unpack(self.parts)

    def scales(self) -> Tensor:
        """Every float that others are multiplied by."""
        return PACKINGS[self.packing].scales(self.parts)
