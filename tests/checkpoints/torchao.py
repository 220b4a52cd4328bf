"""Components of tiny checkpoints packed as torchao packs them and diffusers saves them: `pack(folder, kind)`.

Written here by its layout, so that tests do not need the library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FLOAT32 = {"_type": "torch.dtype", "_data": "float32"}


def pack(folder: Path, kind: str) -> dict[str, Tensor]:
    """Pack the weights of blocks in the component `folder`; what they are now, as floats."""
    [file] = folder.glob("*.safetensors")
    tensors, floats, notes = load_file(file), dict[str, Tensor](), dict[str, Any]()
    for name in list(tensors):
        weight = tensors[name]
        notes[name] = {"_type": "Tensor"}
        if "layers." in name and weight.ndim == 2:
            parts, floats[name], notes[name] = _packed(tensors.pop(name).float(), kind)
            layer, _, own = name.rpartition(".")
            tensors |= {f"{layer}._{own}_{role}": part.contiguous() for role, part in parts.items()}
    header = {name: json.dumps(note) for name, note in notes.items()} | {"tensor_names": json.dumps(list(notes))}
    save_file(tensors, file, {"format": "pt", **header})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": {"default": {"_type": kind}}}
    (folder / "config.json").write_text(json.dumps(config))
    return floats


def _packed(weight: Tensor, kind: str) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """The parts of weights [N, K], what they stand for, and the note about them."""
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
