"""Linear layers whose products are the same in any company, of which ranks of the tensor axis have parts: the layers of
`parallel/tensor.py`, steady. Used by the pass of the tier "invariant" (`steady.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from omnimuse.layers.few import Few, FewLinear
from omnimuse.layers.steady import SteadyLinear
from omnimuse.parallel.tensor import GatheredLinear, Gathering, SummedLinear, Summing


class SteadyGathered(Gathering, SteadyLinear):
    """The same as `GatheredLinear`."""


class SteadySummed(Summing, SteadyLinear):
    """The same as `SummedLinear`."""


class FewGathered(Gathering, FewLinear):
    """The same, in a network that writes."""


class FewSummed(Summing, FewLinear):
    """The same, in a network that writes."""


def steady_layer(layer: nn.Linear | GatheredLinear | SummedLinear, heights: Sequence[int], few: Few) -> SteadyLinear:
    """What does the same as `layer` in tiles of these `heights`, and rows of one token each as `few`
    has it, if in some.
    """
    if isinstance(layer, GatheredLinear):
        gathered = FewGathered(layer, heights, few) if few.heights else SteadyGathered(layer, heights)
        gathered.axis, gathered.counts = layer.axis, layer.counts
        return gathered
    if isinstance(layer, SummedLinear):
        summed = FewSummed(layer, heights, few) if few.heights else SteadySummed(layer, heights)
        summed.axis = layer.axis
        return summed
    return FewLinear(layer, heights, few) if few.heights else SteadyLinear(layer, heights)
