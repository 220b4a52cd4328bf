"""Weights of 8 bits with their scales beside them, as `eight_bits.py` lists the layouts: what of a component's files
they are, and our rows of them.

`a.weight` has its scales in `a.weight_scale` or `a.weight_scale_inv`, by which it is multiplied under both names; they
may be in another file. Used by `headers`, by names, shapes and formats alone; files are read when weights are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import ceil, prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.loader.differences import Shape
from omnimuse.loader.eight_bits import EightBits
from omnimuse.loader.files import AGAIN
from omnimuse.loader.foreign import FLOATS, Packed
from omnimuse.quant.codes import GROUPED, MICRO, Shared
from omnimuse.quant.packings import Rows

NUMBERS = {"F8_E4M3": "fp8", "I8": "int8"}
"""Formats of weights, and our packing with a scale for each output."""
SCALES = ("weight_scale", "weight_scale_inv")
GROUPS: Mapping[str, Shared] = MappingProxyType({**GROUPED, "mxfp8": MICRO["mxfp8"]})
"""Our packings with a scale for some inputs, the most first."""
FULL, POWERS = ("F32", "BF16", "F16"), ("U8", "F8_E8M0")
"""Formats of scales, and of those in blocks that are powers of two."""
NOTES = ("input_scale", "activation_scale", "input_zero_point")
"""What inputs are rounded by, which they are not here."""
REMEMBERED = ("k_scale", "v_scale", "q_scale", "prob_scale")
"""By what others round keys, values and what is made of them, which are floats here."""
ZERO = "weight_zero_point"
"""What is subtracted from whole numbers first, which is read where it is nothing."""


class There(Protocol):
    """What a header says of a tensor."""

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def kind(self) -> str: ...


def packed(how: EightBits, there: Mapping[str, There]) -> dict[str, Packed]:
    """The packed weights among a component's tensors, by name. ModelError for scales that are missing, of another
    shape or format than belongs to the weights, or of no weights.
    """
    found = dict(_all(how, there))
    parts = {part for each in found.values() for part in each.parts.values()}
    for name in there.keys() - parts:
        layer, _, own = name.rpartition(".")
        if own in SCALES:
            raise ModelError(
                f"{there[name].path}: {name} is a scale of {layer}.weight, which is not in 8 bits; {AGAIN}"
            )
    return found


def is_note(name: str) -> bool:
    """Whether a tensor is no weight, but what something else is rounded by, which is not rounded here."""
    return name.rpartition(".")[2] in REMEMBERED


def _all(how: EightBits, there: Mapping[str, There]) -> Iterator[tuple[str, Packed]]:
    for name, weight in there.items():
        layer, dot, own = name.rpartition(".")
        if own != "weight" or weight.kind not in NUMBERS or len(weight.shape) < 2 or not prod(weight.shape):
            continue
        roles = {role: f"{layer}{dot}{role}" for role in (*SCALES, *NOTES, ZERO) if f"{layer}{dot}{role}" in there}
        scales = [role for role in SCALES if role in roles]
        if len(scales) != 1:
            either = " or ".join(f"{layer}{dot}{role}" for role in SCALES)
            what = "two scales" if scales else f"no scale, {either}"
            raise ModelError(f"{weight.path}: {name} has {what}, and what {how.library} packed has one; {AGAIN}")
        scale = roles.pop(scales[0])
        _check(how, weight, scale, there[scale])
        parts = {"weight": name, "scale": scale, **roles}
        paths = {part: there[part].path for part in parts.values()}
        yield name, Packed(_packing(how, weight), weight.shape, parts, partial(_content, how, paths))


def _check(how: EightBits, weight: There, name: str, scale: There) -> None:
    """ModelError unless the scales called `name` have a format and the shape that belong to the weights."""
    expected = [_grid(how.block, weight.shape)] if how.block else [(1,), weight.shape[:1]]
    formats = (*FULL, *POWERS) if how.block else FULL
    if scale.kind not in formats or _sizes(scale.shape) not in map(_sizes, expected):
        wanted = " or ".join(str(list(each)) for each in expected)
        raise ModelError(
            f"{scale.path}: {name} is {list(scale.shape)} of {scale.kind} for weights of {list(weight.shape)}, and "
            f"what {how.library} packed has {wanted} of {' or '.join(formats)} there; {AGAIN}"
        )


def _grid(block: tuple[int, int], shape: Shape) -> Shape:
    """How many blocks there are along both dimensions of weights; the last may be smaller."""
    return (*(ceil(size / whole) for size, whole in zip(shape, block, strict=False)), *shape[2:])


def _sizes(shape: Shape) -> Shape:
    """A shape without what is 1 of it: libraries differ in these."""
    return tuple(size for size in shape if size != 1)


def _packing(how: EightBits, weight: There) -> str:
    """The name of our packing that holds it, or `FLOATS`."""
    if len(weight.shape) != 2:
        return FLOATS
    if how.block is None:
        return NUMBERS[weight.kind] + ("-dynamic" if how.rounds else "")
    if weight.kind != "F8_E4M3":
        return FLOATS
    whole, inputs = how.block[1], weight.shape[1]
    return next((name for name, each in GROUPS.items() if whole % each.group == 0 and each.fits(inputs)), FLOATS)


def _content(how: EightBits, paths: Mapping[str, Path], handle: Any, packed: Packed) -> Tensor | Rows:
    """Rows as our packing has them, or floats where it cannot have them so."""
    weight, inputs = handle.get_tensor(packed.parts["weight"]), packed.shape[1]
    parts = {role: _beside(handle, paths, packed, role) for role in ("scale", ZERO) if role in packed.parts}
    if bool(parts.get(ZERO, torch.zeros(())).any()):
        raise ModelError(f"{packed.parts[ZERO]} has numbers other than 0, which are not read; use another checkpoint")
    scale = parts["scale"].view(torch.float8_e8m0fnu) if parts["scale"].dtype == torch.uint8 else parts["scale"]
    grid = (-1, *[1] * (weight.ndim - 1)) if how.block is None else _grid(how.block, packed.shape)
    scale = scale.float().reshape(grid)
    if packed.kind == FLOATS:
        return weight.float().mul_(scale) if how.block is None else _multiplied(weight.float(), scale, how.block)
    if how.block is not None:
        (rows, some), group = how.block, GROUPS[packed.kind].group
        scale = scale.repeat_interleave(rows, 0)[: len(weight)]
        scale = scale.repeat_interleave(some // group, 1)[:, : ceil(inputs / group)]
    codes = weight if weight.dtype == torch.int8 else weight.view(torch.uint8)
    return Rows(packed.kind, inputs, {"weight": codes, "weight_scale": scale.expand(len(weight), -1)})


def _multiplied(floats: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """`floats`, each multiplied by the scale of its block, where they are: as many scales would take as much again."""
    rows, some = block
    for part, factors in zip(floats.split(rows), scale.split(1), strict=True):
        part.mul_(factors.repeat_interleave(some, 1)[:, : floats.shape[1]])
    return floats


def _beside(handle: Any, paths: Mapping[str, Path], packed: Packed, role: str) -> Tensor:
    """What belongs to the weights in the file that is open as `handle`, from there or from its own file."""
    name = packed.parts[role]
    if paths[name] == paths[packed.parts["weight"]]:
        found: Tensor = handle.get_tensor(name)
        return found
    with safe_open(paths[name], framework="pt") as other:
        return torch.clone(other.get_tensor(name))
