"""Components of tiny checkpoints packed as torchao packs them and diffusers saves them: `pack(folder, kind)`.

Written here by its layout, so that tests do not need the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.quant.codes import E2M1
from tests.checkpoints.parts import packable, say_packed, weights_of

FLOAT32 = {"_type": "torch.dtype", "_data": "float32"}


def pack(folder: Path, kind: str) -> dict[str, Tensor]:
    """Pack the weights of blocks in the component `folder`; what they are now, as floats."""
    file = weights_of(folder)
    tensors, floats, notes = load_file(file), dict[str, Tensor](), dict[str, Any]()
    for name in list(tensors):
        weight = tensors[name]
        notes[name] = {"_type": "Tensor"}
        if packable(name, weight):
            parts, floats[name], notes[name] = _packed(tensors.pop(name).float(), kind)
            layer, _, own = name.rpartition(".")
            tensors |= {f"{layer}._{own}_{role}": part.contiguous() for role, part in parts.items()}
    header = {name: json.dumps(note) for name, note in notes.items()} | {"tensor_names": json.dumps(list(notes))}
    save_file(tensors, file, {"format": "pt", **header})
    say_packed(file, {"quant_method": "torchao", "quant_type": {"default": {"_type": kind}}})
    return floats


def _packed(weight: Tensor, kind: str) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """The parts of weights [N, K], what they stand for, and the note about them."""
    if kind in TILED:
        return TILED[kind](weight)
    size = weight.shape[1] if kind in ("int8", "int8-dynamic", "fp8") else 32
    grouped = weight.unflatten(1, (-1, size))
    made: dict[str, Any] = {"block_size": [1, size], "dtype": FLOAT32}
    if kind == "int4-pairs":
        floor, top = grouped.amin(-1), grouped.amax(-1)
        scale = (top - floor) / 15
        middle = floor + 8 * scale
        whole = ((grouped - floor[..., None]) / scale[..., None]).round().sub(8).to(torch.int8)
        floats = whole * scale[..., None] + middle[..., None]
        codes = whole.flatten(1)
        made = {"activation_dtype": {"_type": "torch.dtype", "_data": "bfloat16"}, "block_size": [1, size]}
        made["shape"] = list(weight.shape)
        parts = {"qdata": (codes[:, ::2] & 15) | (codes[:, 1::2] << 4), "scale": scale.t(), "zero_point": middle.t()}
        return parts, floats.flatten(1), _note("Int4Tensor", made, ["qdata", "scale", "zero_point"])
    most = grouped.abs().amax(-1)
    if kind == "fp8":
        scale = most.double().div(torch.finfo(torch.float8_e4m3fn).max).float()
        codes = (weight / scale).to(torch.float8_e4m3fn)
        made |= {"mm_config": None, "act_quant_kwargs": None, "kernel_preference": _enum("KernelPreference", "AUTO")}
        return {"qdata": codes, "scale": scale}, codes.float() * scale, _note("Float8Tensor", made, ["qdata", "scale"])
    least, largest = (-8, 7) if kind == "int4" else (-128, 127)
    scale = most / ((largest - least) / 2)
    whole = (grouped * (1 / scale[..., None])).round().clamp(least, largest)
    parts = {
        "qdata": whole.flatten(1).to(torch.int8),
        "scale": scale,
        "zero_point": torch.zeros_like(scale).to(torch.int8),
    }
    floats = (whole * scale[..., None]).flatten(1)
    if kind == "int4":
        made |= {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}, "activation_quantization": None}
        return parts, floats, _note("IntxUnpackedToInt8Tensor", made, ["qdata", "scale", "zero_point"])
    rounding = {
        "granularity": {"_type": "PerRow", "_data": {"dim": -1}},
        "mapping_type": _enum("MappingType", "SYMMETRIC"),
        "reduce_range": False,
    }
    inputs = {"_type": "QuantizeTensorToInt8Kwargs", "_data": rounding} if kind == "int8-dynamic" else None
    made |= {"act_quant_kwargs": inputs, "reduce_range": False}
    return parts, floats, _note("Int8Tensor", made, ["zero_point", "qdata", "scale"])


def _enum(kind: str, value: str) -> dict[str, str]:
    return {"_type": kind, "_data": value}


def _note(kind: str, made: dict[str, Any], roles: list[str]) -> dict[str, Any]:
    return {"_type": kind, "_data": made, "_tensor_data_names": roles}


Made = tuple[dict[str, Tensor], Tensor, dict[str, Any]]


def _tiles(weight: Tensor, size: int = 32) -> Made:
    """What `torch.ops.aten._convert_weight_to_int4pack` makes on a GPU, by its kernel, thread by thread."""
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -inputs % 1024, 0, -outputs % 8))
    grouped = padded.unflatten(1, (-1, size))
    floor = grouped.amin(-1)
    scale = ((grouped.amax(-1) - floor).clamp(min=1e-6) / 15).bfloat16().float()
    zero = (floor + 8 * scale).bfloat16().float()
    codes = ((grouped - zero[..., None]) / scale[..., None]).round().add(8).clamp(0, 15)
    floats = ((codes - 8) * scale[..., None] + zero[..., None]).flatten(1)[:outputs, :inputs].contiguous()
    whole = codes.flatten(1).to(torch.int64)
    words = torch.empty(len(whole) // 8, whole.shape[1] // 128, 32, 4, dtype=torch.int64)
    for thread in range(32):
        for inner in range(0, 8, 2):
            first = inner * 16 + thread % 4 * 2
            places = torch.tensor([first + step for step in (0, 1, 8, 9, 16, 17, 24, 25)])
            held = whole.unflatten(1, (-1, 128))[thread // 4 :: 8][..., places]  # [N / 8, K / 128, 8]
            bits = sum(held[..., number] << (4 * place) for place, number in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
            words[:, :, thread, inner // 2] = bits
    both = torch.stack((scale, zero), -1).transpose(0, 1).bfloat16()
    made = {"block_size": [1, size], "shape": [outputs, inputs]}
    note = _note("Int4TilePackedTo4dTensor", made, ["qdata", "scale_and_zero"])
    return {"qdata": words.to(torch.int32), "scale_and_zero": both}, floats, note


def in_blocks(scale: Tensor) -> Tensor:
    """Factors [N, G] in the order that cuBLAS wants, each written to its place."""
    rows, groups = scale.shape
    found = torch.zeros(ceil(rows / 128), ceil(groups / 4), 32, 4, 4)
    for row in range(rows):
        for group in range(groups):
            found[row // 128, group // 4, row % 32, row % 128 // 32, group % 4] = scale[row, group]
    return found.view(ceil(rows / 128) * 32, -1)


def _micro(weight: Tensor, element: str, blocks: bool) -> Made:
    """Floats with a factor for every 32 (MX) or 16 (`nvfp4`), these in blocks or as they are."""
    size, most = (16 if element == "nvfp4" else 32), (448.0 if element == "float8_e4m3fn" else 57344.0)
    grouped = weight.unflatten(1, (-1, size))
    small = element in ("nvfp4", "float4_e2m1fn_x2")
    wanted = grouped.abs().amax(-1) / (6 if small else most)
    all_ = wanted.max() / 448 if element == "nvfp4" else torch.tensor(1.0)
    kind = torch.float8_e4m3fn if element == "nvfp4" else torch.float8_e8m0fnu
    factors = (wanted / all_).log2().ceil().exp2() if element != "nvfp4" else wanted / all_
    factors = factors.to(kind).float()
    numbers = grouped / (all_ * factors)[..., None].clamp(min=1e-30)
    if small:
        table = torch.tensor(E2M1)
        found = (numbers[..., None] - table).abs().argmin(-1)
        numbers, flat = table[found], found.flatten(1).to(torch.uint8)
        codes = flat[:, ::2] | (flat[:, 1::2] << 4)
    else:
        codes = numbers.to(getattr(torch, element)).flatten(1)
        numbers = codes.float().unflatten(1, (-1, size))
    parts = {"qdata": codes, "scale": (in_blocks(factors) if blocks else factors).to(kind)}
    made = {"block_size": size, "is_swizzled_scales": blocks, "orig_dtype": FLOAT32, "act_quant_kwargs": None}
    if element == "nvfp4":
        parts["per_tensor_scale"] = all_
        note = _note("NVFP4Tensor", made | {"use_triton_kernel": False}, [*parts])
    else:
        made |= {"elem_dtype": {"_type": "torch.dtype", "_data": element}}
        note = _note("MXTensor", made | {"kernel_preference": _enum("KernelPreference", "EMULATED")}, [*parts])
    return parts, (numbers * (all_ * factors)[..., None]).flatten(1), note


TILED: dict[str, Callable[[Tensor], Made]] = {
    "tiles": _tiles,
    "mxfp8": partial(_micro, element="float8_e4m3fn", blocks=True),
    "mxfp8-e5m2": partial(_micro, element="float8_e5m2", blocks=False),
    "mxfp4": partial(_micro, element="float4_e2m1fn_x2", blocks=True),
    "nvfp4": partial(_micro, element="nvfp4", blocks=True),
}
"""What it packs for one kernel."""
