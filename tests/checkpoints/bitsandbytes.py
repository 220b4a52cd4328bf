"""Components of tiny checkpoints packed as bitsandbytes packs them: `pack(folder, kind)`.

Written here by its layout, so that tests do not need the library.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.quant.codes import CODES, GROUP
from tests.checkpoints.parts import packable, say_packed, weights_of

SAID = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def pack(folder: Path, kind: str, double: bool = False) -> dict[str, Tensor]:
    """Pack the weights of blocks in the component `folder`, with factors packed as well if `double`; what they are now,
    as floats.
    """
    file = weights_of(folder)
    tensors, floats = load_file(file), dict[str, Tensor]()
    for name in [name for name, each in tensors.items() if packable(name, each)]:
        weight = tensors.pop(name).float()
        made = _eight(weight) if kind == "int8" else _four(weight, kind, double)
        floats[name] = made.pop("floats")
        prefix = name.removesuffix("weight") if kind == "int8" else ""
        tensors[name] = made.pop("weight")
        tensors |= {f"{prefix or name + '.'}{part}": each for part, each in made.items()}
    save_file(tensors, file, {"format": "pt"})
    say_packed(file, {"quant_method": "bitsandbytes", **SAID[kind]})
    return floats


def unpack(folder: Path, floats: dict[str, Tensor]) -> None:
    """Write `floats` over the weights in the component `folder`."""
    file = weights_of(folder)
    save_file(load_file(file) | floats, file, {"format": "pt"})


def _eight(weight: Tensor) -> dict[str, Tensor]:
    most = weight.abs().amax(1)
    whole = (weight / most[:, None] * 127).round().to(torch.int8)
    note = torch.tensor(0, dtype=torch.uint8)
    return {"weight": whole, "SCB": most, "weight_format": note, "floats": whole * (most[:, None] / 127)}


def _four(weight: Tensor, kind: str, double: bool) -> dict[str, Tensor]:
    code, count = torch.tensor(CODES[kind].code), weight.numel()
    groups = F.pad(weight.flatten(), (0, -count % GROUP)).view(-1, GROUP)
    most = groups.abs().amax(1)
    state = {"quant_type": kind, "blocksize": GROUP, "dtype": "float32", "shape": list(weight.shape)}
    parts: dict[str, Tensor] = {"absmax": most}
    if double:
        middle, levels = float(most.mean()), torch.linspace(-1, 1, 256)
        sizes = torch.stack([each.abs().max() for each in (most - middle).split(256)])
        scaled = (most - middle) / sizes.repeat_interleave(256)[: len(most)]
        small = (scaled[:, None] - levels).abs().argmin(1).to(torch.uint8)
        parts = {"absmax": small, "nested_absmax": sizes, "nested_quant_map": levels}
        most = levels[small.int()] * sizes.repeat_interleave(256)[: len(most)] + middle
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": middle}
    codes = (groups[..., None] / most[:, None, None] - code).abs().argmin(-1).flatten()
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[: -(-count // 2), None]
    told = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    floats = (code[codes].view(-1, GROUP) * most[:, None]).flatten()[:count].view(weight.shape)
    return {"weight": packed, "quant_map": code, f"quant_state.bitsandbytes__{kind}": told, **parts, "floats": floats}
