"""Weights of four bits as bitsandbytes has them: each names one of 16 numbers, and 64 in a row share a factor.

They are kept so and become floats when they are multiplied; nothing here packs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from omnimuse.quant.schemes import Parts, Product

GROUP = 64
"""Inputs that share a factor."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""As many below each as a normal distribution has (arXiv 2305.14314, appendix E)."""
_FP4 = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)
FP4 = (*_FP4, *(-number for number in _FP4))
"""Floats with two bits for the exponent and one for the rest, over the largest."""


@dataclass(frozen=True)
class Coded:
    """One table of 16 numbers."""

    code: tuple[float, ...]

    def fits(self, inputs: int) -> bool:
        """Whether rows of `inputs` are whole groups."""
        return inputs % GROUP == 0

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(outputs, inputs // 2, dtype=torch.uint8, device="meta"),
            "weight_scale": torch.empty(outputs, inputs // GROUP, dtype=torch.float32, device="meta"),
        }

    def outputs(self, parts: Parts) -> int:
        return len(parts["weight"])

    def scales(self, parts: Parts) -> Tensor:
        return parts["weight_scale"]

    def numbers(self, packed: Tensor) -> Tensor:
        """Bytes [*, n], each of two codes, the first in the high half -> [*, 2 n]."""
        code = torch.tensor(self.code, device=packed.device)
        pairs = torch.stack((code.repeat_interleave(16), code.repeat(16)), 1)  # [256, 2]: of each byte both
        found = pairs.view(torch.int64).flatten().index_select(0, packed.flatten().int())
        return found.view(torch.float32).view(*packed.shape[:-1], -1)

    def unpack(self, parts: Parts) -> Tensor:
        packed, scale = parts["weight"], parts["weight_scale"]
        return self.numbers(packed).view(len(packed), -1, GROUP).mul_(scale[..., None]).flatten(1)

    def multiply(self, x: Tensor, parts: Parts, product: Product) -> Tensor:
        return product(x, self.unpack(parts).to(x.dtype))


CODES: Mapping[str, Coded] = MappingProxyType({"nf4": Coded(NF4), "fp4": Coded(FP4)})
"""By bitsandbytes' names."""
