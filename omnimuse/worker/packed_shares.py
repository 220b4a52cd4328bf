"""Linear layers with packed weights of which ranks of the tensor axis have parts: the layers of `parallel/tensor.py`,
packed. Used by the pass that packs (`quantize.py`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from omnimuse.core.plans import Slices
from omnimuse.parallel.collectives import gathered, greatest, summed
from omnimuse.parallel.mesh import Axis
from omnimuse.parallel.tensor import GatheredLinear, SummedLinear
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.quant.schemes import Packing


class GatheredPacked(QuantizedLinear):
    """The same as `GatheredLinear` with packed weights."""

    def __init__(self, linear: GatheredLinear, scheme: Packing, arithmetic: torch.dtype) -> None:
        super().__init__(linear, scheme, arithmetic)
        self.axis, self.counts = linear.axis, linear.counts

    def forward(self, x: Tensor) -> Tensor:
        part = super().forward(x).movedim(-1, 0)
        return torch.cat(gathered(self.axis, part, self.counts)).movedim(0, -1)


class SummedPacked(QuantizedLinear):
    """The same as `SummedLinear` with packed weights, of which `columns` are here."""

    def __init__(self, linear: SummedLinear, scheme: Packing, arithmetic: torch.dtype, columns: Slices | None) -> None:
        super().__init__(linear, scheme, arithmetic, columns, partial(greatest, linear.axis))
        self.axis = linear.axis

    def forward(self, x: Tensor) -> Tensor:
        out = self.total(self.made(x, None))
        return out if self.bias is None else (out + self.bias).to(x.dtype)

    def total(self, part: Tensor) -> Tensor:
        """What all ranks made of their inputs, added up."""
        return summed(self.axis, part)


def packed_layer(
    layer: nn.Linear | GatheredLinear | SummedLinear,
    scheme: Packing,
    arithmetic: torch.dtype,
    columns: Slices | None,
    axis: Axis,
) -> QuantizedLinear:
    """What does the same as `layer` with packed weights; `columns` are the inputs that are here, where ranks of the
    tensor `axis` have some each.
    """
    if isinstance(layer, GatheredLinear):
        return GatheredPacked(layer, scheme, arithmetic)
    if isinstance(layer, SummedLinear):
        return SummedPacked(layer, scheme, arithmetic, columns)
    return QuantizedLinear(layer, scheme, arithmetic, columns, partial(greatest, axis))
