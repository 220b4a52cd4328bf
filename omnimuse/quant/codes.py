"""Weights of four or eight bits whose numbers, so many in a row, share a factor, as other libraries have them.

Four bits name one of 16 numbers: those of bitsandbytes, or floats with two bits for the exponent and one for the rest
(e2m1), as the formats MXFP4 and NVFP4 have them. They are kept so and become floats when they are multiplied; nothing
here packs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from types import MappingProxyType

import torch
from torch import Tensor

from omnimuse.core.plans import Slices
from omnimuse.quant.schemes import FP8, Fp8, Largest, Packing, Parts, held, own

GROUP = 64
"""Inputs that share a factor, as bitsandbytes has them."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""As many below each as a normal distribution has (arXiv 2305.14314, appendix E)."""
_FP4 = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)
FP4 = (*_FP4, *(-number for number in _FP4))
"""Floats with two bits for the exponent and one for the rest, over the largest."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = (*_E2M1, *(-number for number in _E2M1))
"""The same as the Open Compute Project's formats have them (Microscaling Formats, 1.0)."""


@dataclass(frozen=True)
class Shared(Packing, ABC):
    """Codes as bytes, with a factor for every `group` inputs."""

    group: int = GROUP

    @property
    @abstractmethod
    def a_byte(self) -> int:
        """How many numbers a byte has."""

    @abstractmethod
    def numbers(self, packed: Tensor) -> Tensor:
        """What bytes [*, n] stand for without the factors, float32 [*, n times `a_byte`]."""

    def fits(self, inputs: int) -> bool:
        """Whether rows of `inputs` are whole groups."""
        return inputs % self.group == 0

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(outputs, inputs // self.a_byte, dtype=torch.uint8, device="meta"),
            "weight_scale": torch.empty(outputs, inputs // self.group, dtype=torch.float32, device="meta"),
        }

    def unpack(self, parts: Parts) -> Tensor:
        packed, scale = parts["weight"], parts["weight_scale"]
        return self.numbers(packed).view(len(packed), -1, self.group).mul_(scale[..., None]).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Coded(Shared):
    """One table of 16 numbers; of two in a byte the first is in the high half."""

    code: tuple[float, ...]

    @property
    def a_byte(self) -> int:
        return 2

    def numbers(self, packed: Tensor) -> Tensor:
        code = torch.tensor(self.code, device="cpu").to(packed.device, non_blocking=True)  # nobody waits for it
        pairs = torch.stack((code.repeat_interleave(16), code.repeat(16)), 1)  # [256, 2]: of each byte both
        found = pairs.view(torch.int64).flatten().index_select(0, packed.flatten().int())
        return found.view(torch.float32).view(*packed.shape[:-1], -1)


@dataclass(frozen=True)
class Small(Shared):
    """Floats of 8 bits (of `kind`)."""

    kind: torch.dtype = FP8

    @property
    def a_byte(self) -> int:
        return 1

    def numbers(self, packed: Tensor) -> Tensor:
        return Fp8(kind=self.kind).floats(packed)

    def scales(self, parts: Parts) -> Tensor:
        return Fp8(kind=self.kind).scales(parts)


@dataclass(frozen=True)
class Grouped(Small):
    """The same where inputs need not be whole groups: the last of a row may be smaller. Some columns of it have scales
    for smaller groups, where what is kept does not end with one.
    """

    def fits(self, inputs: int) -> bool:
        return True

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        groups = -(-inputs // self.group)
        scale = torch.empty(outputs, groups, dtype=torch.float32, device="meta")
        return {"weight": torch.empty(outputs, inputs, dtype=torch.uint8, device="meta"), "weight_scale": scale}

    def unpack(self, parts: Parts) -> Tensor:
        numbers, scale = self.numbers(parts["weight"]), parts["weight_scale"]
        groups = numbers.shape[1] // self.group
        whole, rest = numbers[:, : groups * self.group], numbers[:, groups * self.group :]
        whole.unflatten(1, (groups, self.group)).mul_(scale[:, :groups, None])
        rest.mul_(scale[:, groups:])
        return numbers

    def some(self, columns: Slices, largest: Largest) -> Grouped:
        ends = (end for span in columns.spans for end in span if end != columns.whole)
        return replace(self, group=gcd(self.group, *ends))

    def part(self, parts: Parts, columns: Slices) -> dict[str, Tensor]:
        group = self.some(columns, own).group
        scale = parts["weight_scale"].repeat_interleave(self.group // group, 1)
        spans = tuple((start // group, -(-stop // group)) for start, stop in columns.spans)
        groups = Slices(1, scale.shape[1], spans)
        return {"weight": held(parts["weight"], columns), "weight_scale": held(scale, groups)}


CODES: Mapping[str, Coded] = MappingProxyType({"nf4": Coded(code=NF4), "fp4": Coded(code=FP4)})
"""By bitsandbytes' names."""
MICRO: Mapping[str, Shared] = MappingProxyType(
    {
        "mxfp4": Coded(32, code=E2M1),
        "nvfp4": Coded(16, code=E2M1),
        "mxfp8": Small(32),
        "mxfp8-e5m2": Small(32, torch.float8_e5m2),
    }
)
"""Formats with a factor for few inputs."""
GROUPED: Mapping[str, Grouped] = MappingProxyType({"fp8-128": Grouped(128)})
"""What blocks of 8 bits become: their scale is that of each of their rows."""
