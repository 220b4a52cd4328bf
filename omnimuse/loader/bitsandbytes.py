"""Weights that bitsandbytes has packed, in its own layout: what of a file they are, and their parts as we have them.

Four bits: bytes of two codes each, the first in the high half, for rows end to end; what every 64 numbers are
multiplied by, which may be packed in 8 bits itself; and a description in JSON. Eight bits: whole numbers, and the
largest number of every row. Source: the state that `bitsandbytes.functional` saves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.quant.codes import CODES, GROUP
from omnimuse.quant.packings import Rows

STATE = ".quant_state.bitsandbytes__"
ROW = "SCB"
"""What eight bits have the largest number of every row under."""
FLOATS = "F32"
"""What stands for packed weights whose factors belong to no whole number of rows' parts."""
NOTES = ("weight_format",)
"""What says nothing of weights."""
FOUR = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


@dataclass(frozen=True)
class Packed:
    """Weights: the name of our packing, the shape that they stand for, and the names of their tensors by role."""

    kind: str
    shape: tuple[int, int]
    parts: Mapping[str, str]


def packed_weights(handle: Any, kinds: Mapping[str, str]) -> dict[str, Packed]:
    """Those in the open safetensors file `handle`, whose tensors have such formats; ModelError for what is not read."""
    return {**dict(_four_bits(handle, kinds)), **dict(_eight_bits(handle, kinds))}


def _four_bits(handle: Any, kinds: Mapping[str, str]) -> Iterator[tuple[str, Packed]]:
    for name in [name for name in kinds if STATE in name]:
        weight, _, code = name.partition(STATE)
        about = _state(handle, name)
        rows, inputs = about["shape"]
        if code not in CODES:
            known = " and ".join(CODES)
            raise ModelError(f"{weight} was packed by bitsandbytes as {code}, which is not read; {known} are")
        fits = about["blocksize"] == GROUP and CODES[code].fits(inputs)
        roles = {role: f"{weight}.{role}" for role in FOUR if f"{weight}.{role}" in kinds}
        yield weight, Packed(code if fits else FLOATS, (rows, inputs), {"weight": weight, "state": name, **roles})


def _eight_bits(handle: Any, kinds: Mapping[str, str]) -> Iterator[tuple[str, Packed]]:
    for name in [name for name in kinds if name.endswith(f".{ROW}")]:
        layer = name.removesuffix(f".{ROW}")
        weight = f"{layer}.weight"
        if kinds.get(weight) != "I8":
            continue
        rows, inputs = handle.get_slice(weight).get_shape()
        notes = {role: f"{layer}.{role}" for role in NOTES if f"{layer}.{role}" in kinds}
        yield weight, Packed("int8", (rows, inputs), {"weight": weight, ROW: name, **notes})


def content_of(handle: Any, packed: Packed) -> Tensor | Rows:
    """Rows as our packing has them, or floats where it cannot have them so."""
    names = packed.parts
    weight = handle.get_tensor(names["weight"])
    if ROW in names:
        scale = handle.get_tensor(names[ROW]).float()[:, None] / 127
        return Rows(packed.kind, packed.shape[1], {"weight": weight, "weight_scale": scale})
    state = _state(handle, names["state"])
    scale = handle.get_tensor(names["absmax"])
    if "nested_absmax" in names:
        levels, sizes = (handle.get_tensor(names[role]) for role in ("nested_quant_map", "nested_absmax"))
        each = sizes.repeat_interleave(state["nested_blocksize"])[: scale.numel()]
        scale = levels[scale.int()] * each + state["nested_offset"]
    if packed.kind != FLOATS:
        rows = packed.shape[0]
        return Rows(
            packed.kind, packed.shape[1], {"weight": weight.view(rows, -1), "weight_scale": scale.view(rows, -1)}
        )
    count = packed.shape[0] * packed.shape[1]
    numbers = CODES[names["state"].rpartition("__")[2]].numbers(weight.flatten())[:count]
    return (numbers * scale.float().repeat_interleave(state["blocksize"])[:count]).view(packed.shape)


def _state(handle: Any, name: str) -> dict[str, Any]:
    """What a description says; ModelError if it is none."""
    try:
        found: dict[str, Any] = json.loads(bytes(handle.get_tensor(name).to(torch.uint8).tolist()))
        rows, inputs = map(int, found["shape"])
    except (ValueError, KeyError, TypeError) as problem:
        raise ModelError(f"{name} does not say how weights were packed ({problem}); get the file again") from None
    return {**found, "shape": (rows, inputs), "blocksize": int(found.get("blocksize", 0))}
