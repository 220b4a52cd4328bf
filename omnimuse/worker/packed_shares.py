"""Linear layers with packed weights of which ranks of the tensor axis have parts: the layers of `parallel/tensor.py`,
packed. Used by the pass that packs (`quantize.py`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from omnimuse.core.plans import Slices
from omnimuse.parallel.collectives import greatest
from omnimuse.parallel.mesh import Axis
from omnimuse.parallel.tensor import GatheredLinear, Gathering, SummedLinear, Summing
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.quant.schemes import Packing


class GatheredPacked(Gathering, QuantizedLinear):
    """The same as `GatheredLinear` with packed weights."""

    def __init__(self, linear: GatheredLinear, scheme: Packing, arithmetic: torch.dtype) -> None:
        super().__init__(linear, scheme, arithmetic)
        self.axis, self.counts = linear.axis, linear.counts


class SummedPacked(Summing, QuantizedLinear):
    """The same as `SummedLinear` with packed weights, of which `columns` are here."""

    def __init__(self, linear: SummedLinear, scheme: Packing, arithmetic: torch.dtype, columns: Slices | None) -> None:
        super().__init__(linear, scheme, arithmetic, columns, partial(greatest, linear.axis))
        self.axis = linear.axis


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
