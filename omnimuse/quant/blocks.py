"""Weights as GGUF files hold them: blocks of 32 or 256 inputs, each with scales of its own, as bytes.

They are kept as they lie in the file and become floats when they are multiplied; nothing here packs. A row of weights
is whole blocks, so rows can be taken apart and put together as they are. The formats are ggml's (`ggml-common.h`).

Letters: B blocks of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from omnimuse.quant.grids import half, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, shifted, words
from omnimuse.quant.schemes import Packing, Parts

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What four bits stand for where they are no even steps: closer to one another near zero."""


@dataclass(frozen=True)
class Blocks(Packing):
    """One format: a block has `inputs` numbers in `size` bytes, of which `floats` finds the scales in float16."""

    inputs: int
    size: int
    numbers: Callable[[Tensor], Tensor]
    """bytes [B, size] -> float32 [B, inputs]."""
    floats: tuple[int, ...]
    """At which bytes of a block its scales are."""

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        size = inputs // self.inputs * self.size
        return {"weight": torch.empty(outputs, size, dtype=torch.uint8, device="meta")}

    def unpack(self, parts: Parts) -> Tensor:
        return self.numbers(self._blocks(parts)).view(len(parts["weight"]), -1)

    def scales(self, parts: Parts) -> Tensor:
        blocks = self._blocks(parts)
        return torch.cat([half(blocks, start) for start in self.floats], 1)

    def _blocks(self, parts: Parts) -> Tensor:
        return parts["weight"].reshape(-1, self.size)


def nibbles(packed: Tensor) -> Tensor:
    """Bytes [B, n, w] -> their low halves, then their high ones, [B, n, 2, w]."""
    return torch.stack((packed & 15, packed >> 4), 2)


def bits(packed: Tensor, count: int, mask: int) -> Tensor:
    """Bytes [B, n, w] -> the parts of each that `mask` leaves of it after shifts, [B, n, count, w]."""
    step = 8 // count
    return torch.stack([(packed >> (step * number)) & mask for number in range(count)], 2)


def q4_0(blocks: Tensor) -> Tensor:
    """A scale, and 32 numbers from -8 to 7: the first half of them in low halves of bytes."""
    whole = nibbles(blocks[:, 2:].unsqueeze(1)).flatten(1).to(torch.int8) - 8
    return half(blocks, 0) * whole


def q4_1(blocks: Tensor) -> Tensor:
    """A scale, a floor, and 32 numbers from 0 to 15."""
    return half(blocks, 0) * nibbles(blocks[:, 4:].unsqueeze(1)).flatten(1) + half(blocks, 2)


def q5_0(blocks: Tensor) -> Tensor:
    """As `q4_0`, with a fifth bit of every number beside them."""
    return half(blocks, 0) * (_fifth(blocks[:, 2:6], blocks[:, 6:]).to(torch.int8) - 16)


def q5_1(blocks: Tensor) -> Tensor:
    """As `q4_1`, with a fifth bit of every number beside them."""
    return half(blocks, 0) * _fifth(blocks[:, 4:8], blocks[:, 8:]) + half(blocks, 2)


def _fifth(high: Tensor, low: Tensor) -> Tensor:
    """Numbers of 5 bits: `high` has a bit for each, in their order, `low` the other four."""
    top = bits(high.unsqueeze(2), 8, 1).flatten(1)  # [B, 32]
    return nibbles(low.unsqueeze(1)).flatten(1) | (top << 4)


def q8_0(blocks: Tensor) -> Tensor:
    """A scale, and 32 numbers from -127 to 127."""
    return half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8)


def q2_k(blocks: Tensor) -> Tensor:
    """Sixteen groups of 16 numbers from 0 to 3; scales and floors of 4 bits in units of the block's own two."""
    whole = bits(blocks[:, 16:80].unflatten(1, (2, 32)), 4, 3).flatten(1).view(len(blocks), 16, 16)
    scale, floor = half(blocks, 80) * (blocks[:, :16] & 15), half(blocks, 82) * (blocks[:, :16] >> 4)
    return (scale.unsqueeze(2) * whole - floor.unsqueeze(2)).flatten(1)


def q3_k(blocks: Tensor) -> Tensor:
    """Sixteen groups of 16 numbers from -4 to 3, whose third bits are apart; scales of 6 bits, from -32 to 31."""
    low = bits(blocks[:, 32:96].unflatten(1, (2, 32)), 4, 3).flatten(1)
    top = bits(blocks[:, :32].unsqueeze(1), 8, 1).flatten(1)
    whole = (low.to(torch.int8) - ((top ^ 1) << 2).to(torch.int8)).view(len(blocks), 16, 16)
    first = nibbles(blocks[:, 96:104].unsqueeze(1)).flatten(1)
    second = bits(blocks[:, 104:108].unsqueeze(1), 4, 3).flatten(1)
    scale = half(blocks, 108) * ((first | (second << 4)).to(torch.int8) - 32)
    return (scale.unsqueeze(2) * whole).flatten(1)


def iq4_nl(blocks: Tensor) -> Tensor:
    """A scale, and 32 numbers that are `LEVELS`."""
    return half(blocks, 0) * _level(nibbles(blocks[:, 2:].unsqueeze(1)).flatten(1))


def iq4_xs(blocks: Tensor) -> Tensor:
    """Eight groups of 32 numbers that are `LEVELS`; scales of 6 bits, from -32 to 31."""
    high = shifted(words(blocks[:, 2:4]), tuple(range(0, 16, 2)), 3).flatten(1)
    low = shifted(blocks[:, 4:8], (0, 4), 15).flatten(1).long()
    scale = half(blocks, 0) * ((low | (high << 4)) - 32)
    return (scale.unsqueeze(2) * _level(nibbles(blocks[:, 8:].unflatten(1, (8, 16))).flatten(2))).flatten(1)


def _level(places: Tensor) -> Tensor:
    levels = torch.tensor(LEVELS, dtype=torch.float32, device="cpu").to(places.device, non_blocking=True)
    return levels.index_select(0, places.flatten().int()).view(places.shape)


def q4_k(blocks: Tensor) -> Tensor:
    """Eight groups of 32 numbers from 0 to 15; scales and floors of 6 bits in units of the block's own two."""
    scale, floor = _groups(blocks)
    return (scale * nibbles(blocks[:, 16:].unflatten(1, (4, 32))).flatten(1, 2) - floor).flatten(1)


def q5_k(blocks: Tensor) -> Tensor:
    """As `q4_k`, with a fifth bit of every number: bit g of byte i is that of number i in group g."""
    scale, floor = _groups(blocks)
    top = bits(blocks[:, 16:48].unsqueeze(1), 8, 1).flatten(1, 2)  # [B, 8, 32]
    whole = nibbles(blocks[:, 48:].unflatten(1, (4, 32))).flatten(1, 2) | (top << 4)
    return (scale * whole - floor).flatten(1)


def _groups(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the floor of each of eight groups, [B, 8, 1]: 6 bits each, in 12 bytes."""
    first, second, third = blocks[:, 4:16].unflatten(1, (3, 4)).unbind(1)  # [B, 4] each
    scale = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), 1)
    floor = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), 1)
    return (half(blocks, 0) * scale).unsqueeze(2), (half(blocks, 2) * floor).unsqueeze(2)


def q6_k(blocks: Tensor) -> Tensor:
    """Sixteen groups of 16 numbers from -32 to 31, whose scales are whole numbers of the block's own."""
    low = nibbles(blocks[:, :128].unflatten(1, (2, 64))).flatten(1).unflatten(1, (8, 32))
    top = bits(blocks[:, 128:192].unflatten(1, (2, 32)), 4, 3).flatten(1, 2)  # [B, 8, 32]
    whole = ((low | (top << 4)).to(torch.int8) - 32).view(len(blocks), 16, 16)
    scale = half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8)
    return (scale.unsqueeze(2) * whole).flatten(1)


BLOCKS: Mapping[str, Blocks] = MappingProxyType(
    {
        "Q4_0": Blocks(32, 18, q4_0, (0,)),
        "Q4_1": Blocks(32, 20, q4_1, (0, 2)),
        "Q5_0": Blocks(32, 22, q5_0, (0,)),
        "Q5_1": Blocks(32, 24, q5_1, (0, 2)),
        "Q8_0": Blocks(32, 34, q8_0, (0,)),
        "Q2_K": Blocks(256, 84, q2_k, (80, 82)),
        "Q3_K": Blocks(256, 110, q3_k, (108,)),
        "Q4_K": Blocks(256, 144, q4_k, (0, 2)),
        "Q5_K": Blocks(256, 176, q5_k, (0, 2)),
        "Q6_K": Blocks(256, 210, q6_k, (208,)),
        "IQ1_S": Blocks(256, 50, iq1_s, (0,)),
        "IQ2_XXS": Blocks(256, 66, iq2_xxs, (0,)),
        "IQ2_XS": Blocks(256, 74, iq2_xs, (0,)),
        "IQ2_S": Blocks(256, 82, iq2_s, (0,)),
        "IQ3_XXS": Blocks(256, 98, iq3_xxs, (0,)),
        "IQ3_S": Blocks(256, 110, iq3_s, (0,)),
        "IQ4_NL": Blocks(32, 18, iq4_nl, (0,)),
        "IQ4_XS": Blocks(256, 136, iq4_xs, (0,)),
    }
)
"""Every format that is read, by its name in GGUF."""
