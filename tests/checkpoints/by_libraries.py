"""Layers as torchao and bitsandbytes themselves pack them, in `../data/packed`, so that tests need neither library.

A file has one layer of 12x64 (bitsandbytes' also of 6x96, whose groups cross rows) as its library saves it;
`floats.safetensors` has what the library makes of each again, and products of `INPUTS` with some. They were made by
torchao 0.18.0 and bitsandbytes 0.50.2 with torch 2.13.0, on a CPU: with both installed, `python -m
tests.checkpoints.by_libraries` makes them anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = Path(__file__).parent.parent / "data" / "packed"
FLOATS = KEPT / "floats.safetensors"
LAYER = "layers.weight"


MULTIPLIED = ("int8", "int8-dynamic", "fp8")
"""Kinds of torchao's whose products are kept, too."""

Made = tuple[dict[str, Tensor], dict[str, str] | None, dict[str, Tensor]]
"""What a file holds, its notes, and what the library makes of them: `floats`, and `product` where that is kept."""


def made() -> dict[str, dict[str, Tensor]]:
    """What its own library makes of every packed layer, by the name of its file."""
    found = dict[str, dict[str, Tensor]]()
    for name, tensor in load_file(FLOATS).items():
        kind, _, what = name.rpartition(".")
        found.setdefault(kind, {})[what] = tensor
    return found


def weight(rows: int = 12, inputs: int = 64) -> Tensor:
    """What was packed; of other rows also what is multiplied."""
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))


INPUTS = weight(7)


def main() -> None:
    """Make every file anew."""
    KEPT.mkdir(exist_ok=True)
    known = dict[str, Tensor]()
    for kind, (tensors, notes, results) in {**_by_torchao(), **_by_bitsandbytes()}.items():
        save_file({name: each.contiguous() for name, each in tensors.items()}, KEPT / f"{kind}.safetensors", notes)
        known |= {f"{kind}.{what}": each.float().contiguous() for what, each in results.items()}
    save_file(known, FLOATS)


def _by_torchao() -> dict[str, Made]:
    from torchao import quantization as library
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    groups, found = {"granularity": library.PerGroup(32)}, dict[str, Made]()
    hows: dict[str, Callable[[], Any]] = {
        "int8": library.Int8WeightOnlyConfig,
        "int8-dynamic": library.Int8DynamicActivationInt8WeightConfig,
        "fp8": library.Float8WeightOnlyConfig,
        "int4": partial(library.IntxWeightOnlyConfig, weight_dtype=torch.int4, **groups),
        "int8-groups": partial(library.Int8WeightOnlyConfig, **groups),
    }
    for kind, how in hows.items():
        linear = torch.nn.Linear(64, 12, bias=False)
        linear.weight = torch.nn.Parameter(weight(), requires_grad=False)
        library.quantize_(linear, how())
        results = {"floats": linear.weight.dequantize()}  # type: ignore[operator]
        if kind in MULTIPLIED:
            results["product"] = linear(INPUTS)
        found[f"torchao-{kind}"] = (*flatten_tensor_state_dict({LAYER: linear.weight.data}), results)
    for kind, each in _with_factors().items():
        stored = flatten_tensor_state_dict({LAYER: each})
        found[f"torchao-{kind}"] = (*stored, {"floats": each.dequantize(torch.float32)})
    return found


def _with_factors() -> dict[str, Any]:
    """The formats with factors for few inputs; of bfloat16, from which alone the library makes them."""
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    half = weight().bfloat16()
    all_ = per_tensor_amax_to_scale(half.abs().max())
    return {
        "mxfp8": MXTensor.to_mx(half, torch.float8_e4m3fn, 32, is_swizzled_scales=False),
        "mxfp8-blocks": MXTensor.to_mx(half, torch.float8_e4m3fn, 32, is_swizzled_scales=True),
        "mxfp8-e5m2": MXTensor.to_mx(half, torch.float8_e5m2, 32, is_swizzled_scales=False),
        "mxfp4": MXTensor.to_mx(half, torch.float4_e2m1fn_x2, 32, is_swizzled_scales=False),
        "nvfp4": NVFP4Tensor.to_nvfp4(half, is_swizzled_scales=False),
        "nvfp4-all": NVFP4Tensor.to_nvfp4(half, per_tensor_scale=all_, is_swizzled_scales=False),
        "nvfp4-blocks": NVFP4Tensor.to_nvfp4(half, per_tensor_scale=all_, is_swizzled_scales=True),
    }


def _by_bitsandbytes() -> dict[str, Made]:
    return dict(_of_4_bits()) | {"bitsandbytes-int8": _of_8_bits()}


def _of_4_bits() -> Iterator[tuple[str, Made]]:
    import bitsandbytes.functional as library

    for kind in ("nf4", "fp4"):
        for double, (rows, inputs) in ((False, (12, 64)), (True, (12, 64)), (True, (6, 96))):
            packed, state = library.quantize_4bit(
                weight(rows, inputs), blocksize=64, quant_type=kind, compress_statistics=double
            )
            told = {f"{LAYER}.{name}": each for name, each in state.as_dict(packed=True).items()}
            state.shape = torch.Size([1, rows * inputs])  # its kernel for CPUs errs where blocks cross rows
            floats = library.dequantize_4bit(packed, state).view(rows, inputs)
            yield (
                f"bitsandbytes-{kind}{'-double' * double}-{inputs}",
                ({LAYER: packed, **told}, None, {"floats": floats}),
            )


def _of_8_bits() -> Made:
    import bitsandbytes.functional as library

    codes, scales, _ = library.int8_vectorwise_quant(weight().half())
    parts = {LAYER: codes, "layers.SCB": scales, "layers.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, None, {"floats": library.int8_vectorwise_dequant(codes, scales)}


if __name__ == "__main__":
    main()
