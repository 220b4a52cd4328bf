"""How a linear layer's weights are packed into fewer bits, and how inputs are multiplied with them.

A scheme packs rows: what becomes of an output's weights depends on these alone. So the loader packs pieces of a tensor
as it reads them, and ranks may keep parts of a layer. What is stored are a few tensors beside each other, the parts.

Letters: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import gcd
from types import MappingProxyType
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from omnimuse.core.plans import Slices

Parts = Mapping[str, Tensor]
"""The stored tensors of a layer's weights, by name; all have a row for each of the N outputs (but see `stacked.py`)."""

Product = Callable[[Tensor, Tensor], Tensor]
"""x [T, K] times weights [N, K], both floats of one kind -> [T, N]."""

Largest = Callable[[Tensor], Tensor]
"""What is largest of some inputs of each token, [T, 1] -> what is largest of all, where others have the rest."""

FP8 = torch.float8_e4m3fn

EXACT = 1024
"""Inputs whose products of two numbers of 8 bits float32 adds up without rounding: 128 * 128 * 1024 = 2**24."""

LEAST = torch.finfo(torch.float32).tiny
"""The least scale, of which one part is still a number."""

READ_IN = torch.bfloat16
"""The format of tokens for which torch's kernels read packed weights once; of any other these are slow."""


class Packing(Protocol):
    """One way in which weights are packed."""

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        """Every part, on meta."""
        ...

    def outputs(self, parts: Parts) -> int:
        """How many rows the parts have."""
        return len(parts["weight"])

    def scales(self, parts: Parts) -> Tensor:
        """Every float in the parts that others are multiplied by: where one is none, weights are none."""
        return parts["weight_scale"]

    def unpack(self, parts: Parts) -> Tensor:
        """The weights that the parts stand for, float32 [N, K]."""
        ...

    def multiply(self, x: Tensor, parts: Parts, product: Product) -> Tensor:
        """x [T, K] times the weights -> [T, N] in the format of x, or in float32."""
        return product(x, self.unpack(parts).to(x.dtype))


@runtime_checkable
class Divisible(Packing, Protocol):
    """A packing of whole rows of which some columns can be kept."""

    def some(self, columns: Slices, largest: Largest) -> Packing:
        """How some columns of rows are packed that were packed whole: they stand for the same floats."""
        ...

    def part(self, parts: Parts, columns: Slices) -> dict[str, Tensor]:
        """The parts of these columns, of the parts of whole rows."""
        ...


@runtime_checkable
class Scheme(Divisible, Protocol):
    """A packing that weights can be given here."""

    def pack(self, rows: Tensor) -> dict[str, Tensor]:
        """The parts of these rows of weights, float32 [n, K]."""
        ...


class Reading(ABC):
    """A packing that can be read once for a few rows, one token of each, where a product of many first makes floats of
    all weights. Each row is multiplied by itself, so that none depends on its company.
    """

    @abstractmethod
    def most(self, inputs: int) -> int:
        """Up to how many rows [R, 1, K] of so many inputs that is faster; 0 where it is not there for such."""

    @abstractmethod
    def few_product(self, x: Tensor, parts: Parts) -> Tensor:
        """x [R, K], in `READ_IN`, times the weights -> [R, N] in that format, or in float32."""


def held(tensor: Tensor, cut: Slices) -> Tensor:
    """The share of a whole tensor that `cut` says."""
    spans = cut.spans or ((0, 0),)
    return torch.cat([tensor.narrow(cut.dim, start, stop - start) for start, stop in spans], cut.dim)


def own(found: Tensor) -> Tensor:
    """What is found, where all inputs are here."""
    return found


@dataclass(frozen=True)
class Scaled(Packing):
    """What has numbers of 8 bits, and a scale for each output; one that is `dynamic` rounds the inputs of a token so,
    too, by what is `largest` of them.
    """

    dynamic: bool = False
    largest: Largest = field(default=own, compare=False, repr=False)

    def some(self, columns: Slices, largest: Largest) -> Self:
        return replace(self, largest=largest) if self.dynamic else self

    def part(self, parts: Parts, columns: Slices) -> dict[str, Tensor]:
        return {**parts, "weight": held(parts["weight"], columns)}


@dataclass(frozen=True)
class Int8(Scaled, Reading):
    """Whole numbers from -128 to 127."""

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(outputs, inputs, dtype=torch.int8, device="meta"),
            "weight_scale": torch.empty(outputs, 1, dtype=torch.float32, device="meta"),
        }

    def pack(self, rows: Tensor) -> dict[str, Tensor]:
        whole, scale = rounded(rows)
        return {"weight": whole, "weight_scale": scale}

    def unpack(self, parts: Parts) -> Tensor:
        return parts["weight"] * parts["weight_scale"]

    def multiply(self, x: Tensor, parts: Parts, product: Product) -> Tensor:
        weight, scale = parts["weight"], parts["weight_scale"]
        if self.dynamic:
            whole, size = rounded(x.float(), self.largest)
            return whole_product(whole, weight) * size * scale.t()
        return scaled_product(x, weight, scale, product)

    def most(self, inputs: int) -> int:
        return 8 if inputs % 32 == 0 and not self.dynamic else 0  # of others it reads too far

    def few_product(self, x: Tensor, parts: Parts) -> Tensor:
        weight, scale = parts["weight"], parts["weight_scale"]
        return torch._weight_int8pack_mm(x, weight, torch.ones_like(scale[:, 0], dtype=x.dtype)) * scale.t()


@dataclass(frozen=True)
class Fp8(Scaled):
    """Floats of 8 bits (of `kind`).

    Their bits are stored as whole numbers, which nothing converts on the way. GPUs since Hopper multiply them as they
    are; elsewhere the same numbers become floats when they are used.
    """

    kind: torch.dtype = FP8

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(outputs, inputs, dtype=torch.uint8, device="meta"),
            "weight_scale": torch.empty(outputs, 1, dtype=torch.float32, device="meta"),
        }

    def pack(self, rows: Tensor) -> dict[str, Tensor]:
        small, scale = rounded_fp8(rows, self.kind)
        return {"weight": small.view(torch.uint8), "weight_scale": scale}

    def scales(self, parts: Parts) -> Tensor:
        """Those of rows in which one of the small floats is none are none, either."""
        least = 0x7F if self.kind == FP8 else 0x7C  # of the codes of what is infinite or none, without their sign
        broken = [((rows & 0x7F) >= least).any(1, keepdim=True) for rows in parts["weight"].split(256)]
        return parts["weight_scale"].masked_fill(torch.cat(broken), torch.nan)

    def unpack(self, parts: Parts) -> Tensor:
        return self.floats(parts["weight"]).mul_(parts["weight_scale"])

    def multiply(self, x: Tensor, parts: Parts, product: Product) -> Tensor:
        weight, scale = parts["weight"], parts["weight_scale"]
        if not self.dynamic:
            return scaled_product(x, self.floats(weight), scale, product)
        small, size = rounded_fp8(x.float(), self.kind, self.largest)
        if _multiplies_fp8(x, weight):
            weight = weight.view(self.kind)
            return torch._scaled_mm(small, weight.t(), size, scale.t().contiguous(), out_dtype=torch.bfloat16)
        return product(self.floats(small.view(torch.uint8)), self.floats(weight)) * size * scale.t()

    def floats(self, codes: Tensor) -> Tensor:
        """What these bits are, uint8 -> float32, to the bit where they are a number; `scales` tells where not."""
        if codes.device.type != "cpu" or self.kind != FP8:
            return codes.view(self.kind).float()
        # Those of float16 with a smaller exponent, which the processor converts many at once: torch does one by one.
        bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
        return bits.view(torch.float16).float().mul_(256)


@dataclass(frozen=True)
class Int4(Packing):
    """Whole numbers from 0 to 15, two in a byte, with a scale and a floor for every `group` of inputs.

    Where inputs do not divide into such groups, these are the largest equal ones that do and are no larger.
    """

    group: int = 64

    def scales(self, parts: Parts) -> Tensor:
        return torch.cat((parts["weight_scale"], parts["weight_floor"]), 1)

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        groups = inputs // gcd(inputs, self.group)
        return {
            "weight": torch.empty(outputs, -(-inputs // 2), dtype=torch.uint8, device="meta"),
            "weight_scale": torch.empty(outputs, groups, dtype=torch.float32, device="meta"),
            "weight_floor": torch.empty(outputs, groups, dtype=torch.float32, device="meta"),
        }

    def pack(self, rows: Tensor) -> dict[str, Tensor]:
        grouped = rows.unflatten(-1, (-1, gcd(rows.shape[-1], self.group)))  # [n, K / group, group]
        floor, top = grouped.amin(-1), grouped.amax(-1)
        scale = torch.where(top > floor, (top - floor) / 15, 1.0)
        whole = ((grouped - floor[..., None]) / scale[..., None]).round_().clamp_(0, 15).to(torch.uint8).flatten(-2)
        return {"weight": in_pairs(whole), "weight_scale": scale, "weight_floor": floor}

    def some(self, columns: Slices, largest: Largest) -> Int4:
        """Its groups are as large as divide every one of the columns' spans, too."""
        ends = (end for span in columns.spans for end in span)
        return replace(self, group=gcd(columns.whole, self.group, *ends))

    def part(self, parts: Parts, columns: Slices) -> dict[str, Tensor]:
        group = self.some(columns, own).group
        spans = tuple((start // group, stop // group) for start, stop in columns.spans)
        groups, times = Slices(1, columns.whole // group, spans), gcd(columns.whole, self.group) // group
        found = {
            name: held(parts[name].repeat_interleave(times, 1), groups) for name in ("weight_scale", "weight_floor")
        }
        return {"weight": in_pairs(held(apart(parts["weight"]), columns))} | found

    def unpack(self, parts: Parts) -> Tensor:
        packed, scale, floor = parts["weight"], parts["weight_scale"], parts["weight_floor"]
        whole = apart(packed, torch.float32)  # [N, K, or one more]
        size = whole.shape[-1] // scale.shape[-1]  # of a group; what makes the last byte whole is less than one
        grouped = whole[:, : size * scale.shape[-1]].unflatten(-1, (-1, size))
        return grouped.mul_(scale[..., None]).add_(floor[..., None]).flatten(-2)

    def fours(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """As `abreast.py` asks for them."""
        return apart(parts["weight"]), parts["weight_scale"], parts["weight_floor"]


def in_pairs(whole: Tensor) -> Tensor:
    """Numbers of four bits, uint8 [n, K] -> two in each byte, [n, K / 2], the last with a zero if it is alone."""
    if whole.shape[-1] % 2:
        whole = torch.nn.functional.pad(whole, (0, 1))
    return whole[:, 0::2] | (whole[:, 1::2] << 4)


def apart(packed: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The reverse, with that zero, as numbers of that format."""
    found = torch.empty(*packed.shape, 2, dtype=dtype, device=packed.device)
    found[..., 0], found[..., 1] = packed & 15, packed >> 4
    return found.flatten(-2)


def rounded_fp8(rows: Tensor, kind: torch.dtype, largest: Largest = own) -> tuple[Tensor, Tensor]:
    """Every row in floats of 8 bits, and its scale [n, 1]; of one with what is no number, that is none either."""
    scale = largest(rows.abs().amax(-1, keepdim=True)) / torch.finfo(kind).max
    scale = scale.masked_fill(scale <= 0, 1.0)
    return (rows / scale).to(kind), scale


def _multiplies_fp8(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cuda" or x.dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(x.device) >= (9, 0) and not (x.shape[1] % 16 or len(weight) % 16)


def rounded(rows: Tensor, largest: Largest = own) -> tuple[Tensor, Tensor]:
    """Every row as whole numbers from -128 to 127, and its scale [n, 1]; torchao's numbers, to the bit. The scale of a
    row with what is no number is none either.
    """
    scale = largest(rows.abs().amax(-1, keepdim=True)) / 127.5
    scale = scale.masked_fill(scale < LEAST, 1.0)
    return (rows * (1 / scale)).round_().clamp_(-128, 127).to(torch.int8), scale


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor, product: Product) -> Tensor:
    """x [T, K] times weight [N, K], whose rows have a `scale` [N, 1] each."""
    if x.dtype == torch.float16:  # without the scale, sums would be too large for it
        return product(x, (weight.float() * scale).to(x.dtype))
    return product(x, weight.to(x.dtype)) * scale.t()


def reading(x: Tensor, packing: Packing, *, rounds: bool = False, any_number: bool = False) -> Reading | None:
    """What reads packed weights once for x [..., K], if that is there: for rows of one token each, in bfloat16 or such
    as it `rounds` to that, where they are few or may be `any_number`.
    """
    if x.shape[1:-1] != (1,) or not isinstance(packing, Reading):
        return None
    if x.device.type != "cpu" or not (rounds or x.dtype == READ_IN):
        return None
    most = packing.most(x.shape[-1])
    return packing if most and (any_number or len(x) <= most) else None


def whole_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, K] times weight [N, K], whole numbers of 8 bits -> float32 [T, N], the same to the bit on every device.

    Processors without units for such numbers are many times faster at it in float32, as far as that is exact.
    """
    if _has_units(x, weight):
        missing = max(0, 17 - len(x)) if x.device.type == "cuda" else 0  # it multiplies more than 16 rows
        padded = torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x
        return torch._int_mm(padded, weight.t())[: len(x)].float()
    pairs = zip(x.split(EXACT, 1), weight.split(EXACT, 1), strict=True)
    sums = [torch.mm(some.float(), others.float().t()) for some, others in pairs]
    if len(sums) == 1:
        return sums[0]
    return torch.stack([each.to(torch.int32) for each in sums]).sum(0, dtype=torch.int32).float()


def _has_units(x: Tensor, weight: Tensor) -> bool:
    if x.device.type == "cuda":
        return x.shape[1] % 8 == 0 and len(weight) % 8 == 0
    return PROCESSOR_HAS_UNITS


PROCESSOR_HAS_UNITS = any(bool(torch.cpu.get_capabilities().get(name)) for name in ("avx512_vnni", "amx_int8"))
"""Asked once, since compiled code cannot ask."""


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "int8": Int8(),
        "int8-dynamic": Int8(dynamic=True),
        "int4": Int4(),
        "fp8": Fp8(),
        "fp8-dynamic": Fp8(dynamic=True),
    }
)
"""Every scheme that can be asked for, by its name (`core.config.QUANT`)."""
