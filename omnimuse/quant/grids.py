"""GGUF's formats of few bits: numbers that are places in a table, and signs that are, too.

A group of 4 or 8 inputs is a row of the format's grid, times a scale and eight signs. The grids are long; they come
from gguf's own package, which reads such files. Names and order are those of `blocks.py`, which lists the formats.

Letters: B blocks of all rows together.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.errors import ConfigError

EIGHT = tuple(range(8))
SEVENS = (0, 7, 14, 21)


def grid(kind: str, device: torch.device) -> Tensor:
    """The table of a format, float32 [rows, 4 or 8], on `device`; the host does not wait until it is there."""
    own = getattr(_quants(kind), kind)
    own.init_grid()
    found: Tensor = torch.from_numpy(own.grid)[0, 0].to(device, non_blocking=True)
    return found


def even_signs(device: torch.device) -> Tensor:
    """Seven bits -> the eight that have an even number of ones, uint8 [128]."""
    signs = torch.frombuffer(bytearray(_quants("IQ2_XXS").IQ2_XXS.ksigns), dtype=torch.uint8)
    return signs.to(device, non_blocking=True)


def hold_still() -> None:
    """Tell torch's compiler that the tables never change. Before blocks are compiled: it takes a second to import."""
    for table in (grid, even_signs):
        torch.compiler.assume_constant_result(table)


def _quants(kind: str) -> Any:
    try:
        return importlib.import_module("gguf.quants")
    except ImportError as missing:
        raise ConfigError(f"weights in GGUF's format {kind} need its tables: pip install 'omnimuse[gguf]'") from missing


def half(blocks: Tensor, start: int) -> Tensor:
    """The float16 that begins at byte `start` of every block, as float32 [B, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def words(packed: Tensor) -> Tensor:
    """Bytes [B, 2n] -> whole numbers of 16 bits [B, n], the low byte first."""
    pairs = packed.unflatten(1, (-1, 2)).to(torch.int64)
    return pairs[..., 0] | (pairs[..., 1] << 8)


def long_words(packed: Tensor) -> Tensor:
    """Bytes [B, 4n] -> whole numbers of 32 bits [B, n], the low byte first."""
    pairs = words(packed).unflatten(1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 16)


def shifted(packed: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """Whole numbers [B, n] -> what `mask` leaves of each after every shift, [B, n, shifts]."""
    return torch.stack([(packed >> shift) & mask for shift in shifts], -1)


def signs(packed: Tensor) -> Tensor:
    """Bytes [B, n] -> 1 for every bit that is 0 and -1 for a 1, [B, n, 8]."""
    return 1.0 - 2.0 * shifted(packed, EIGHT, 1).float()


def looked_up(kind: str, places: Tensor, scale: Tensor, turned: Tensor) -> Tensor:
    """Rows of the grid at `places` [B, n], with signs [B, 32, 8], times the `scale` of equal parts [B, parts]."""
    rows = grid(kind, places.device)[places.long()].flatten(1)
    parts = rows.unflatten(1, (scale.shape[1], -1))
    return ((scale.unsqueeze(2) * parts).flatten(1) * turned.flatten(1)).contiguous()


def _by_sevens(packed: Tensor) -> Tensor:
    """Signs of whole numbers of 32 bits [B, 8], four times seven bits in each, [B, 32, 8]."""
    sevens = shifted(packed, SEVENS, 127).flatten(1)
    return signs(even_signs(packed.device)[sevens])


def iq2_xxs(blocks: Tensor) -> Tensor:
    """Eight parts: four places, then 28 bits of signs and 4 of scale."""
    parts = blocks[:, 2:].unflatten(1, (8, 8))
    rest = long_words(parts[..., 4:].flatten(1))
    scale = half(blocks, 0) * (0.5 + (rest >> 28).float()) * 0.25
    return looked_up("IQ2_XXS", parts[..., :4].flatten(1), scale, _by_sevens(rest))


def iq2_xs(blocks: Tensor) -> Tensor:
    """Places of 9 bits with 7 of signs; sixteen scales of 4 bits."""
    packed = words(blocks[:, 2:66])
    scale = half(blocks, 0) * (0.5 + shifted(blocks[:, 66:], (0, 4), 15).flatten(1).float()) * 0.25
    return looked_up("IQ2_XS", packed & 511, scale, signs(even_signs(blocks.device)[packed >> 9]))


def iq2_s(blocks: Tensor) -> Tensor:
    """Places of 10 bits, two of them apart; signs in full; sixteen scales of 4 bits."""
    high = shifted(blocks[:, 66:74], (0, 2, 4, 6), 3).flatten(1).long()
    scale = half(blocks, 0) * (0.5 + shifted(blocks[:, 74:], (0, 4), 15).flatten(1).float()) * 0.25
    return looked_up("IQ2_S", blocks[:, 2:34].long() | (high << 8), scale, signs(blocks[:, 34:66]))


def iq3_xxs(blocks: Tensor) -> Tensor:
    """Places of 8 bits for four inputs each; eight times 28 bits of signs and 4 of scale."""
    rest = long_words(blocks[:, 66:])
    scale = half(blocks, 0) * (0.5 + (rest >> 28).float()) * 0.5
    return looked_up("IQ3_XXS", blocks[:, 2:66], scale, _by_sevens(rest))


def iq3_s(blocks: Tensor) -> Tensor:
    """Places of 9 bits, one of them apart, for four inputs each; signs in full; eight scales of 4 bits."""
    high = shifted(blocks[:, 66:74], EIGHT, 1).flatten(1).long()
    scale = half(blocks, 0) * (1 + 2 * shifted(blocks[:, 106:], (0, 4), 15).flatten(1)).float()
    return looked_up("IQ3_S", blocks[:, 2:66].long() | (high << 8), scale, signs(blocks[:, 74:106]))


def iq1_s(blocks: Tensor) -> Tensor:
    """Places of 11 bits, three of them apart, and an eighth more or less; eight scales of 3 bits."""
    rest = words(blocks[:, 34:])
    scale = half(blocks, 0) * (2 * ((rest >> 12) & 7) + 1).float()
    more = 0.125 - 0.25 * (rest >> 15).float()
    places = blocks[:, 2:34].long() | (shifted(rest, (0, 3, 6, 9), 7).flatten(1) << 8)
    parts = grid("IQ1_S", blocks.device)[places].flatten(1).unflatten(1, (8, 32))
    return (scale.unsqueeze(2) * (parts + more.unsqueeze(2))).flatten(1)
