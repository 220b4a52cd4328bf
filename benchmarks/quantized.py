"""What packed weights cost or save in time: one linear layer, each scheme beside float32 and bfloat16, in turns.

    python -m benchmarks.quantized [--tokens 1024] [--inputs 1536] [--outputs 1536] [--rounds 15] [--writing]

Prints for every scheme its time as a ratio to float32 (medians of rounds, alternating in one run), its error against
float32 as a part of the size of the product, and its bytes as a ratio to float32. On a CPU floats, and whole numbers of
8 bits (one scale for all inputs), are multiplied by oneDNN with weights that it has put in its own order beforehand,
too, where it can on this processor. Where torchao is installed, it packs and multiplies beside ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.quant.linear import PackedRows, QuantizedLinear
from omnimuse.quant.schemes import SCHEMES, rounded
from omnimuse.worker.allocator import keep_memory

Run = Callable[[], Tensor]


def packed(weight: Tensor, scheme: str) -> QuantizedLinear:
    """A layer that multiplies with `weight`, packed."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer = QuantizedLinear(linear, SCHEMES[scheme], weight.dtype)
    parts = {name: torch.empty_like(part, device=weight.device) for name, part in layer.packed.items()}
    PackedRows(layer.scheme, parts, layer.inputs).copy_(weight)
    layer.hold(parts)
    return layer


def prepacked(x: Tensor, weight: Tensor) -> Run:
    """A product of floats with weights that oneDNN has put in its own order; RuntimeError where it has none."""
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, ordered, None, "none", [], "")


def prepacked_int8(x: Tensor, weight: Tensor) -> Run:
    """The same of whole numbers of 8 bits, a scale for each output and one for all inputs."""
    whole, scale = rounded(weight)
    ordered = torch.ops.onednn.qlinear_prepack(whole, list(x.shape))
    scales, zeros = scale[:, 0].contiguous(), torch.zeros(len(weight), dtype=torch.int64)

    def run() -> Tensor:
        size = float(x.abs().max()) / 127
        inputs = (x / size).round_().add_(128).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            inputs, size, 128, ordered, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return run


def ordered_beforehand(x: Tensor, weight: Tensor) -> dict[str, Run]:
    """What oneDNN can multiply so on this processor."""
    return those_that_run(
        {
            "float32, oneDNN": lambda: prepacked(x, weight),
            "bfloat16, oneDNN": lambda: prepacked(x.bfloat16(), weight.bfloat16()),
            "int8, oneDNN": lambda: prepacked_int8(x, weight),
        }
    )


def those_that_run(makers: Mapping[str, Callable[[], Run]]) -> dict[str, Run]:
    """What each of them makes, where that can be here; where it cannot, that is said."""
    found: dict[str, Run] = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
        except (RuntimeError, AssertionError, ImportError) as problem:
            print(f"{name:22} cannot be: {str(problem).splitlines()[0]:.150}")
            continue
        found[name] = run
    return found


def by_torchao(x: Tensor, weight: Tensor) -> dict[str, Run]:
    """What torchao makes of a layer, where it is installed; what it cannot do here is said."""
    if find_spec("torchao") is None:
        return {}
    from torchao import quantization as library

    four = {"weight_dtype": torch.int4, "granularity": library.PerGroup(64)}
    makers: dict[str, Callable[[], object]] = {
        "int8, torchao": library.Int8WeightOnlyConfig,
        "int8-dynamic, torchao": library.Int8DynamicActivationInt8WeightConfig,
        "int4, torchao": lambda: library.IntxWeightOnlyConfig(**four),
        "fp8, torchao": library.Float8WeightOnlyConfig,
        "fp8-dynamic, torchao": library.Float8DynamicActivationFloat8WeightConfig,
    }
    return those_that_run({name: partial(_torchao, library, make, x, weight) for name, make in makers.items()})


def _torchao(library: Any, how: Callable[[], object], x: Tensor, weight: Tensor) -> Run:
    linear = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=weight.dtype, device=weight.device)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    library.quantize_(linear, how())
    return lambda: linear(x)


def seconds(run: Run, device: torch.device) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("tokens", 1024), ("inputs", 1536), ("outputs", 1536), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of what is packed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--writing", action="store_true", help="the tokens are one of each of so many rows")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    keep_memory(device)  # as an engine does
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(options.outputs, options.inputs, generator=generator) * 0.02).to(device)
    x = torch.randn(options.tokens, options.inputs, generator=generator).to(device)
    if options.writing:
        x = x[:, None]
    layers = {name: packed(weight.to(dtype), name) for name in SCHEMES}
    floats = {
        str(kind).removeprefix("torch."): (x.to(kind), weight.to(kind)) for kind in (torch.float32, torch.bfloat16)
    }
    runs: dict[str, Run] = {name: lambda pair=pair: F.linear(*pair) for name, pair in floats.items()}  # type: ignore[misc]
    runs |= {name: lambda layer=layer: layer(x.to(dtype)) for name, layer in layers.items()}  # type: ignore[misc]
    if device.type == "cpu":
        runs |= ordered_beforehand(x, weight)
    runs |= by_torchao(x.to(dtype), weight.to(dtype))
    exact = runs["float32"]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 2):
        for name, run in runs.items():
            took = seconds(run, device)
            if number >= 2:
                times[name].append(took)
    for name, run in runs.items():
        ratio = statistics.median(took / base for took, base in zip(times[name], times["float32"], strict=True))
        far = float((run().float() - exact).norm() / exact.norm())
        held = ""
        if name in layers or name in floats:
            parts = layers[name].packed.values() if name in layers else [floats[name][1]]
            held = f"   bytes {sum(part.nbytes for part in parts) / weight.nbytes:.3f}"
        print(f"{name:22} time {ratio:6.2f}   error {far:.4f}{held}")


if __name__ == "__main__":
    main()
