"""Weights that bitsandbytes has packed, in its own layout: what of a file they are, and their parts as we have them.

Four bits: bytes of two codes each, the first in the high half, for rows end to end; what every 64 numbers are
multiplied by, which may be packed in 8 bits itself; and a description in JSON. Eight bits: whole numbers, and the
largest number of every row. Source: the state that `bitsandbytes.functional` saves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.loader.foreign import FLOATS, Packed, check
from omnimuse.quant.codes import CODES, GROUP
from omnimuse.quant.linear import AT_ONCE
from omnimuse.quant.packings import Rows

STATE = ".quant_state.bitsandbytes__"
ROW = "SCB"
"""What eight bits have the largest number of every row under."""
LIBRARY = "bitsandbytes"
NOTES = ("weight_format",)
"""What says nothing of weights."""
BYTES, FULL = ("U8", "BF16", "F16", "F32"), ("F32",)
"""Formats: in which bytes of codes are held, as the library is told to, and of factors."""
HALF = 0.0025
"""By how much numbers of a table in half precision may be off; of neighbours, the nearest are twice as far apart."""


class State(NamedTuple):
    """What a description says: the shape of the weights, how many have one factor; of factors that are packed as well
    how many have one of their own, and what is added to each.
    """

    shape: tuple[int, int]
    group: int
    nested: tuple[int, float] | None


def packed(handle: Any, kinds: Mapping[str, str]) -> dict[str, Packed]:
    """What it packed, by name, in the open safetensors file whose tensors have such formats. ModelError for what is not
    read, and where what belongs to packed weights is not there as they say.
    """
    return {**dict(_four_bits(handle, kinds)), **dict(_eight_bits(handle, kinds))}


def _four_bits(handle: Any, kinds: Mapping[str, str]) -> Iterator[tuple[str, Packed]]:
    for name in [name for name in kinds if STATE in name]:
        weight, _, code = name.partition(STATE)
        state = _state(handle, name)
        if code not in CODES:
            known = " and ".join(CODES)
            raise ModelError(f"{weight} was packed by bitsandbytes as {code}, which is not read; {known} are")
        rows, inputs = state.shape
        groups = -(-rows * inputs // state.group)
        expected = {"weight": (BYTES, -(-rows * inputs // 2)), "absmax": (FULL, 4 * groups)}
        if nested := state.nested:
            expected |= {"absmax": (("U8",), groups), "nested_quant_map": (FULL, 4 * 256)}
            expected |= {"nested_absmax": (FULL, 4 * -(-groups // nested[0]))}
        parts = {role: weight if role == "weight" else f"{weight}.{role}" for role in expected}
        check(handle, kinds, LIBRARY, {parts[role]: each for role, each in expected.items()})
        fits = state.group == GROUP and CODES[code].fits(inputs)
        notes = {role: f"{weight}.{role}" for role in ("quant_map",) if f"{weight}.{role}" in kinds}
        for table in notes.values():
            _check_table(handle.get_tensor(table), table, code)
        yield weight, Packed(code if fits else FLOATS, state.shape, {**parts, "state": name, **notes}, content_of)


def _eight_bits(handle: Any, kinds: Mapping[str, str]) -> Iterator[tuple[str, Packed]]:
    for name in [name for name in kinds if name.endswith(f".{ROW}")]:
        layer = name.removesuffix(f".{ROW}")
        weight = f"{layer}.weight"
        if kinds.get(weight) != "I8":
            continue
        rows, inputs = [*handle.get_slice(weight).get_shape(), 0, 0][:2]
        check(handle, kinds, LIBRARY, {weight: (("I8",), rows * inputs), name: (FULL, 4 * rows)})
        notes = {role: f"{layer}.{role}" for role in NOTES if f"{layer}.{role}" in kinds}
        yield weight, Packed("int8", (rows, inputs), {"weight": weight, ROW: name, **notes}, content_of)


def _check_table(table: Tensor, name: str, code: str) -> None:
    """ModelError unless the numbers that a file says codes stand for are those of `code`: the library saves them beside
    the name, and goes by the name when it computes, so one of the two would be wrong.
    """
    expected = torch.tensor(CODES[code].code)
    if table.numel() != len(expected) or not torch.allclose(table.view(-1).float(), expected, rtol=0, atol=HALF):
        raise ModelError(f"{name} has other numbers than {code}, and so would its weights; get the file again")


def content_of(handle: Any, packed: Packed) -> Tensor | Rows:
    """Rows as our packing has them, or floats where it cannot have them so."""
    names, (rows, inputs) = packed.parts, packed.shape
    weight = handle.get_tensor(names["weight"])
    if ROW in names:
        scale = handle.get_tensor(names[ROW]).view(-1, 1) / 127
        return Rows(packed.kind, inputs, {"weight": weight, "weight_scale": scale})
    state = _state(handle, names["state"])
    weight, scale = weight.view(-1).view(torch.uint8), handle.get_tensor(names["absmax"]).view(-1)
    if state.nested is not None:
        levels, sizes = (handle.get_tensor(names[role]).view(-1) for role in ("nested_quant_map", "nested_absmax"))
        group, offset = state.nested
        scale = levels[scale.int()] * sizes.repeat_interleave(group)[: scale.numel()] + offset
    if packed.kind != FLOATS:
        return Rows(packed.kind, inputs, {"weight": weight.view(rows, -1), "weight_scale": scale.view(rows, -1)})
    code, found, group = CODES[names["state"].rpartition("__")[2]], torch.empty(rows * inputs), state.group
    some = group * max(1, AT_ONCE // (2 * group))  # bytes at a time, with whole groups in them
    parts = zip(found.split(2 * some), weight.split(some), scale.split(2 * some // group), strict=True)
    for floats, codes, factors in parts:
        count = len(floats)
        torch.mul(code.numbers(codes)[:count], factors.repeat_interleave(group)[:count], out=floats)
    return found.view(packed.shape)


def _state(handle: Any, name: str) -> State:
    """What a description says; ModelError if it is none."""
    try:
        found: dict[str, Any] = json.loads(bytes(handle.get_tensor(name).to(torch.uint8).flatten().tolist()))
        rows, inputs = map(int, found["shape"])
        group, nested = int(found["blocksize"]), None
        if "nested_blocksize" in found:
            nested = int(found["nested_blocksize"]), float(found["nested_offset"])
        if min(rows, inputs, group, nested[0] if nested else 1) < 1:
            raise ValueError("it has sizes below 1")
    except (ValueError, KeyError, TypeError, OverflowError) as problem:
        raise ModelError(f"{name} does not say how weights were packed ({problem}); get the file again") from None
    return State((rows, inputs), group, nested)
