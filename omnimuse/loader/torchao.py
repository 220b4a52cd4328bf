"""Weights that torchao has packed, as its safetensors files hold them: what of a file they are, and our rows of them.

A file's header has for each name, in JSON, which class of that library the tensor was and how it was made; the tensors
of `a.b` are `a._b_qdata`, `a._b_scale` and so on. Source: `torchao.prototype.safetensors`, and the classes themselves.

Letters: N outputs, K inputs, G groups of inputs that have one scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.loader.foreign import FLOATS, SIZES, Packed, check
from omnimuse.loader.torchao_tiles import FULL, LAYOUTS, four_bits, in_groups
from omnimuse.quant.packings import WIDE_FP8, Rows
from omnimuse.quant.schemes import apart

LIBRARY = "torchao"
NAMES = "tensor_names"
"""Where a header lists the names of all that was written."""
PLAIN = "Tensor"
PAIRS, EIGHT_BITS = "Int4Tensor", "Float8Tensor"
"""The class that has two numbers in a byte, and scales and floors as [G, N]; and the one of floats."""
CLASSES = MappingProxyType(
    {
        "Int8Tensor": ("I8",),
        "IntxUnpackedToInt8Tensor": ("I8",),
        PAIRS: ("I8", "U8"),
        EIGHT_BITS: ("F8_E4M3", "F8_E5M2"),
    }
)
"""Those that are read, and the formats of their numbers."""
ALWAYS = ("qdata", "scale")
NARROW = ("int1", "int2", "int3", "int4")
"""What whole numbers are called that fit four bits."""


@dataclass(frozen=True)
class Kept:
    """What a header says of one tensor: its class, how it was made, and of its parts, by role, their names, formats and
    shapes.
    """

    kind: str
    made: Mapping[str, Any]
    parts: Mapping[str, str]
    formats: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the parts stand for."""
        *rows, inputs = self.shapes["qdata"]
        return (*rows, inputs * 2 if self.kind == PAIRS else inputs)

    @property
    def scales(self) -> tuple[int, ...]:
        """How many scales there are along each of its dimensions."""
        found = self.shapes["scale"] or (1,) * len(self.shape)
        return (*found[:-2], *found[:-3:-1]) if self.kind == PAIRS else found

    @property
    def narrow(self) -> bool:
        """Whether its numbers are whole ones that fit four bits."""
        return self.kind == PAIRS or self.made.get("target_dtype", {}).get("_data") in NARROW

    @property
    def rounds(self) -> bool:
        """Whether inputs are rounded as well: each by itself, and around zero."""
        how = self.made.get("act_quant_kwargs")
        around = (how or {}).get("_data", {}).get("mapping_type") or {"_data": "SYMMETRIC"}
        return bool(how) and "act_quant_scale" not in self.parts and around["_data"] == "SYMMETRIC"


def packed(handle: Any, kinds: Mapping[str, str]) -> dict[str, Packed]:
    """What it packed, by name, in the open safetensors file whose tensors have such formats. ModelError for what is not
    read, and where what belongs to packed weights is not there as they say.
    """
    said = handle.metadata() or {}
    found = dict[str, Packed]()
    for name, kept in _all_kept(handle, kinds, said) if NAMES in said else ():
        try:
            found[name] = (_in_tiles if kept.kind in LAYOUTS else _in_rows)(handle, kinds, name, kept)
        except (ValueError, KeyError, TypeError, AttributeError):
            parts = ", ".join(f"{role} {list(shape)}" for role, shape in kept.shapes.items())
            raise ModelError(
                f"{name} is no {kept.kind} by what its note and its parts say ({parts}); get the file again"
            ) from None
    return found


def _in_tiles(handle: Any, kinds: Mapping[str, str], name: str, kept: Kept) -> Packed:
    """One whose numbers lie in an order of their own."""
    try:
        found = LAYOUTS[kept.kind][1](kept.made, kept.shapes, kept.formats)
    except ModelError as problem:
        raise ModelError(f"{name} has {problem}") from None
    for role, expected in found.expected.items():
        check(handle, kinds, LIBRARY, {kept.parts[role]: expected})
    return Packed(found.packing, found.shape, kept.parts, found.read)


def _in_rows(handle: Any, kinds: Mapping[str, str], name: str, kept: Kept) -> Packed:
    """One whose numbers lie row by row."""
    _check(handle, kinds, name, kept)
    return Packed(_packing(handle, kept), kept.shape, kept.parts, content_of)


def _all_kept(handle: Any, kinds: Mapping[str, str], said: Mapping[str, str]) -> Iterator[tuple[str, Kept]]:
    """Those that are in this file; the header names those of all files of a checkpoint."""
    for name in said.keys() - {NAMES}:
        layer, dot, own = name.rpartition(".")
        try:
            about = json.loads(said[name])
            if (kind := about["_type"]) == PLAIN:
                continue
            always, _ = LAYOUTS.get(kind, (ALWAYS, None))
            made, roles = dict(about["_data"]), {*always, *map(str, about["_tensor_data_names"])}
        except (ValueError, KeyError, TypeError):
            if not dot:
                continue  # a note, as `format` is
            raise ModelError(f"the header does not say how {LIBRARY} packed {name}; get the file again") from None
        roles |= {"zero_point"} if kind == PAIRS else set()
        parts = {role: f"{layer}{dot}_{own}_{role}" for role in sorted(roles)}
        there = {part: handle.get_slice(part).get_shape() for part in parts.values() if part in kinds}
        if not there:
            continue
        if kind not in CLASSES and kind not in LAYOUTS:
            known = ", ".join((*CLASSES, *LAYOUTS))
            raise ModelError(f"{name} was packed by {LIBRARY} as {kind}, which is not read; {known} are")
        if lacking := ", ".join(part for part in parts.values() if part not in there):
            raise ModelError(
                f"{lacking} is not in the file that has the rest of {name}, as {LIBRARY} packed it; get the file "
                "again, or save the checkpoint in larger files (max_shard_size)"
            )
        formats = {role: kinds[part] for role, part in parts.items()}
        kept = Kept(kind, made, parts, formats, {role: tuple(there[part]) for role, part in parts.items()})
        yield name, kept


def _check(handle: Any, kinds: Mapping[str, str], name: str, kept: Kept) -> None:
    """ModelError unless the parts have formats and sizes that belong to each other."""
    shape, scales = kept.shape, kept.scales
    fits = len(scales) == len(shape) > 1 and all(
        few and not size % few for size, few in zip(shape, scales, strict=True)
    )
    if not fits or not prod(shape):
        raise ModelError(f"{name} has scales of {list(scales)} for weights of {list(shape)}; get the file again")
    whole = () if kept.kind == PAIRS else ("I8",)
    wanted = {"qdata": CLASSES[kept.kind], "scale": FULL, "zero_point": FULL + whole}
    sizes = {"qdata": prod(kept.shapes["qdata"])}
    for role in wanted.keys() & kept.parts.keys():
        size = sizes.get(role, prod(scales) * SIZES.get(kept.formats[role], 0))
        check(handle, kinds, LIBRARY, {kept.parts[role]: (wanted[role], size)})


def _packing(handle: Any, kept: Kept) -> str:
    """The name of our packing that holds it, or `FLOATS`."""
    if len(kept.shape) != 2 or "act_pre_scale" in kept.parts:
        return FLOATS
    outputs, inputs = kept.shape
    if kept.narrow:
        return four_bits(inputs, inputs // kept.scales[1]) if kept.scales[0] == outputs else FLOATS
    if kept.scales not in ((outputs, 1), (1, 1)):
        return FLOATS
    if kept.kind == EIGHT_BITS:
        dynamic = "fp8-dynamic" if kept.rounds else "fp8"
        return dynamic if kept.formats["qdata"] == "F8_E4M3" else WIDE_FP8
    if "zero_point" in kept.parts and bool(handle.get_tensor(kept.parts["zero_point"]).any()):
        return FLOATS
    return "int8-dynamic" if kept.rounds else "int8"


def content_of(handle: Any, packed: Packed) -> Tensor | Rows:
    """Rows as our packing has them, or floats where it cannot have them so."""
    parts = {role: handle.get_tensor(part) for role, part in packed.parts.items()}
    codes, inputs = parts["qdata"], packed.shape[-1]
    scale, zero = parts["scale"].float(), parts.get("zero_point")
    if packed.kind.startswith(("int8", "fp8")):
        weight = codes if codes.dtype == torch.int8 else codes.view(torch.uint8)
        return Rows(packed.kind, inputs, {"weight": weight, "weight_scale": scale.reshape(-1, 1).expand(len(codes), 1)})
    if codes.shape[-1] == inputs:  # (codes - zero) * scale
        floor = torch.zeros_like(scale) if zero is None else -zero.float() * scale
    else:  # codes * scale + zero, all three the other way round
        codes = (apart(codes.view(torch.uint8)) ^ 8).to(torch.int8) - 8
        assert zero is not None
        scale, floor = scale.mT, zero.float().mT
    if packed.kind == FLOATS:
        found = codes.float()
        sizes = zip(scale.shape, found.shape, strict=True)
        by_blocks = found.view([each for few, size in sizes for each in (few, size // few)])
        by_blocks.mul_(_over_blocks(scale)).add_(_over_blocks(floor))  # where they are: so they take no more memory
        return found.mul_(parts["act_pre_scale"].float()) if "act_pre_scale" in parts else found
    return in_groups(packed.kind, (codes + 8).to(torch.uint8), scale, floor - 8 * scale)


def _over_blocks(scales: Tensor) -> Tensor:
    """A number for each block of weights, [.., G] -> [.., 1, G, 1]."""
    return scales.reshape([each for few in scales.shape for each in (few, 1)])
