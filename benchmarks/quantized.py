"""What packed weights cost or save in time: one linear layer, each scheme beside float32 and bfloat16, in turns.

    python -m benchmarks.quantized [--tokens 1024] [--inputs 1536] [--outputs 1536] [--rounds 15]

Prints for every scheme its time as a ratio to float32 (medians of rounds, alternating in one run), its error against
float32 as a part of the size of the product, and its bytes as a ratio to float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.quant.linear import PackedRows, QuantizedLinear
from omnimuse.quant.schemes import SCHEMES

Run = Callable[[], Tensor]


def packed(weight: Tensor, scheme: str) -> QuantizedLinear:
    """A layer that multiplies with `weight`, packed."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    layer = QuantizedLinear(linear, SCHEMES[scheme], weight.dtype)
    parts = {name: torch.empty_like(part, device=weight.device) for name, part in layer.packed.items()}
    PackedRows(layer.scheme, parts, layer.inputs).copy_(weight)
    for name, part in parts.items():
        setattr(layer, name, nn.Parameter(part, requires_grad=False))
    return layer


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
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(options.outputs, options.inputs, generator=generator) * 0.02).to(device)
    x = torch.randn(options.tokens, options.inputs, generator=generator).to(device)
    layers = {name: packed(weight.to(dtype), name) for name in SCHEMES}
    floats = {
        str(kind).removeprefix("torch."): (x.to(kind), weight.to(kind)) for kind in (torch.float32, torch.bfloat16)
    }
    runs: dict[str, Run] = {name: lambda pair=pair: F.linear(*pair) for name, pair in floats.items()}  # type: ignore[misc]
    runs |= {name: lambda layer=layer: layer(x.to(dtype)) for name, layer in layers.items()}  # type: ignore[misc]
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
        held = sum(part.nbytes for part in layers[name].packed.values()) if name in layers else floats[name][1].nbytes
        print(f"{name:14} time {ratio:6.2f}   error {far:.4f}   bytes {held / weight.nbytes:.3f}")


if __name__ == "__main__":
    main()
