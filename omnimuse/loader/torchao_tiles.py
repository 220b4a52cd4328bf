"""What torchao has packed for one kernel of one GPU, as rows: tiles of four bits, and the formats MX and NVFP4.

Tiles are the operands of a tensor core's instruction, in the order in which its threads hold them. Factors of MX and
NVFP4 may lie in blocks of 128 rows, as cuBLAS wants them.

Letters: N outputs, K inputs, G groups of inputs that have one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.loader.foreign import FLOATS, SIZES, Packed
from omnimuse.quant.codes import MICRO
from omnimuse.quant.packings import NARROW_INT4, PACKINGS, Rows
from omnimuse.quant.schemes import Int4, apart, in_pairs

TILES, MX, NVFP4 = "Int4TilePackedTo4dTensor", "MXTensor", "NVFP4Tensor"
FULL = ("F32", "BF16", "F16")
LANES = 32
"""Threads that hold one tile."""
ELEMENTS = MappingProxyType(
    {
        "float8_e4m3fn": ("mxfp8", "F8_E4M3"),
        "float8_e5m2": ("mxfp8-e5m2", "F8_E5M2"),
        "float4_e2m1fn_x2": ("mxfp4", "U8"),
    }
)
"""What it calls the numbers of MX -> our packing, and the format of their bytes."""


@dataclass(frozen=True)
class Found:
    """What tensors stand for: the packing, the shape, and of the parts, by role, the formats and the bytes."""

    packing: str
    shape: tuple[int, int]
    expected: Mapping[str, tuple[Sequence[str], int]]
    read: Callable[[Any, Packed], Tensor | Rows]


def tiles(made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> Found:
    """Whole numbers of four bits; rows and inputs are padded to whole tiles."""
    (outputs, inputs), (*_, size) = made["shape"], made["block_size"]
    rows, columns, lanes, words = shapes["qdata"]
    padded = columns * words * 32
    known = lanes == LANES and rows == ceil(outputs / 8) and padded >= inputs > 0
    if not known or size <= 0 or padded % size:
        raise ValueError
    floats = {"scale_and_zero": padded // size * rows * 8 * 2, "act_pre_scale": inputs}
    expected: dict[str, tuple[Sequence[str], int]] = {
        role: (FULL, floats[role] * SIZES.get(kinds[role], 0)) for role in floats.keys() & kinds.keys()
    }
    expected["qdata"] = (("I32",), prod(shapes["qdata"]) * SIZES["I32"])
    whole = inputs % size == 0 and "act_pre_scale" not in kinds
    return Found(four_bits(inputs, size) if whole else FLOATS, (outputs, inputs), expected, untiled)


def four_bits(inputs: int, size: int) -> str:
    """Our packing of rows in which `size` inputs each have a scale, or `FLOATS`."""
    fitting = (each for each in ("int4", NARROW_INT4) if size % gcd(inputs, group_of(each)) == 0)
    return next(fitting, FLOATS)


def group_of(packing: str) -> int:
    """How many inputs at most have one scale."""
    scheme = PACKINGS[packing]
    assert isinstance(scheme, Int4)
    return scheme.group


def untiled(handle: Any, packed: Packed) -> Tensor | Rows:
    """Its numbers stand for `(code - 8) * scale + zero`."""
    outputs, inputs = packed.shape
    codes = in_order(handle.get_tensor(packed.parts["qdata"]))
    scale, zero = handle.get_tensor(packed.parts["scale_and_zero"]).float().unbind(-1)  # [padded K / size, N]
    scale, zero = scale.mT[:outputs], zero.mT[:outputs]
    size = codes.shape[1] // scale.shape[1]
    codes, floor = codes[:outputs], zero - 8 * scale
    if packed.kind != FLOATS:
        groups = inputs // size
        return in_groups(packed.kind, codes[:, :inputs], scale[:, :groups], floor[:, :groups])
    floats = codes.unflatten(1, (-1, size)).float().mul_(scale[..., None]).add_(floor[..., None])
    floats, first = floats.flatten(1)[:, :inputs], packed.parts.get("act_pre_scale")
    return floats if first is None else floats.mul_(handle.get_tensor(first).float())


def in_order(tiles: Tensor) -> Tensor:
    """Tiles [N / 8, K / (32 W), 32, W] of words with eight numbers each -> the numbers, uint8 [N, K].

    A thread of four has pairs of neighbours, of a row that seven others share with it: two pairs, eight inputs apart,
    of each of two instructions that take 16 inputs. First of all pairs come the first numbers, then the second.
    """
    numbers = apart(tiles.contiguous().view(torch.uint8))  # [n, k, 32, 8 W]
    numbers = numbers.unflatten(3, (-1, 2, 2, 2)).unflatten(2, (8, 4))  # n, k, row, pair, word, second, step, apart
    return numbers.permute(0, 2, 1, 4, 6, 7, 3, 5).flatten(2).flatten(0, 1)


def in_groups(packing: str, codes: Tensor, scale: Tensor, floor: Tensor) -> Rows:
    """Codes from 0 to 15, [N, K], with a scale and a floor for each of G groups, [N, G], as `packing` has them."""
    inputs = codes.shape[1]
    times = inputs // gcd(inputs, group_of(packing)) // scale.shape[1]
    scale, floor = scale.repeat_interleave(times, 1), floor.repeat_interleave(times, 1)
    return Rows(packing, inputs, {"weight": in_pairs(codes), "weight_scale": scale, "weight_floor": floor})


def mx(made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> Found:
    """Floats of 8 or of 4 bits, with a power of two for every 32."""
    element = made["elem_dtype"]
    name = element["_data"] if isinstance(element, dict) else str(element)
    if name not in ELEMENTS:
        raise ModelError(f"numbers of MX in {name}, which are not read; {', '.join(ELEMENTS)} are")
    return _shared(*ELEMENTS[name], "F8_E8M0", made, shapes)


def nvfp4(made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str]) -> Found:
    """Floats of 4 bits, with one of 8 for every 16, and one for all where there is one."""
    found = _shared("nvfp4", "U8", "F8_E4M3", made, shapes)
    all_ = {"per_tensor_scale": (("F32",), 4)} if "per_tensor_scale" in shapes else {}
    return Found(found.packing, found.shape, {**found.expected, **all_}, found.read)


def _shared(
    packing: str, kind: str, factors: str, made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Found:
    form = MICRO[packing]
    outputs, bytes_ = shapes["qdata"]
    inputs = bytes_ * form.a_byte
    if (size := made["block_size"]) != form.group:
        raise ModelError(f"factors for every {size} numbers of {packing}, which are not read; for {form.group} are")
    blocks = bool(made["is_swizzled_scales"])
    groups = inputs // form.group
    count = ceil(outputs / 128) * 128 * ceil(groups / 4) * 4 if blocks else outputs * groups
    if inputs % form.group or not count:
        raise ValueError

    def read(handle: Any, packed: Packed) -> Rows:
        parts = {role: handle.get_tensor(packed.parts[role]) for role in packed.parts}
        scale = parts["scale"].float().flatten()
        scale = (from_blocks(scale, groups)[:outputs] if blocks else scale).reshape(outputs, groups)
        if "per_tensor_scale" in parts:
            scale = parts["per_tensor_scale"] * scale
        codes = parts["qdata"].view(torch.uint8)
        if form.a_byte == 2:
            codes = (codes << 4) | (codes >> 4)  # the first of two is in its low half, and in the high one of ours
        return Rows(packing, inputs, {"weight": codes, "weight_scale": scale})

    expected = {"qdata": ((kind,), outputs * bytes_), "scale": ((factors,), count)}
    return Found(packing, (outputs, inputs), expected, read)


def from_blocks(scale: Tensor, groups: int) -> Tensor:
    """Factors as cuBLAS has them, of 128 rows and four groups a block -> [rows, groups]: a block's rows lie there by
    what is left of them over 32.
    """
    columns = ceil(groups / 4)
    return scale.view(-1, columns, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(-1, 4 * columns)[:, :groups]


LAYOUTS: Mapping[str, tuple[tuple[str, ...], Callable[..., Found]]] = MappingProxyType(
    {TILES: (("qdata", "scale_and_zero"), tiles), MX: (("qdata", "scale"), mx), NVFP4: (("qdata", "scale"), nvfp4)}
)
"""Those classes -> the roles of tensors that each always has, and what they are."""
