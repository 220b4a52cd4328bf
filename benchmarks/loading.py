"""What it costs to refuse NaN in weights: `python -m benchmarks.loading`, as a ratio to loading without a look.

The same bytes are loaded as floats, each of which is looked at, and as whole numbers, which are only copied; in turns.
With `--packed SCHEME ...` it is instead what a start takes of a folder whose weights were packed once, as a ratio to
one that packs them: of a random model of about 190 million numbers to draw with, and of 84 million to decode with.
Told for the clock, and for processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.checkpoints import SMALL, build_z_image
from omnimuse.core.config import Config, ModelConfig, QuantConfig, ScheduleConfig
from omnimuse.engine.local import start
from omnimuse.loader.tensors import construct
from omnimuse.loader.weights import DtypePolicy, load_weights
from omnimuse.quant.schemes import SCHEMES
from omnimuse.worker.pack import pack_checkpoint

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}

Spent = tuple[float, float]
"""Seconds, by the clock and of processor time."""


class Weights(nn.Module):
    """Square tensors of one number format."""

    def __init__(self, count: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        for number in range(count):
            self.register_buffer(f"w{number}", torch.empty(width, width, dtype=dtype))


def main() -> None:
    """Print one line: seconds of loading, and the ratios to loading without a look; or one for every scheme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="bfloat16", choices=[str(dtype).partition(".")[2] for dtype in BITS])
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--tensors", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--packed", nargs="+", default=[], choices=SCHEMES, metavar="SCHEME")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.packed:
            tell_packed(Path(folder), args)
        else:
            tell_looked(Path(folder), args)


def tell_looked(folder: Path, args: argparse.Namespace) -> None:
    """With a look, and without."""
    dtype = getattr(torch, args.format)
    weight = torch.empty(args.width, args.width).uniform_(-0.1, 0.1)
    looked, copied = folder / "looked", folder / "copied"
    for place, kind in ((looked, dtype), (copied, BITS[dtype])):
        place.mkdir()
        content = weight.to(dtype).view(kind)
        save_file({f"w{number}": content.clone() for number in range(args.tensors)}, place / "model.safetensors")
    pairs = [
        (
            loading(looked, args.tensors, args.width, dtype),
            loading(copied, args.tensors, args.width, BITS[dtype]),
        )
        for _ in range(args.rounds)
    ]
    what = f"{args.tensors} tensors of {args.width}x{args.width}, {args.format}"
    tell(what, pairs, "loading without a look")


def tell_packed(folder: Path, args: argparse.Namespace) -> None:
    """Of a folder that is packed, and of one that is not."""
    build_z_image(folder / "whole", SMALL)
    for scheme in args.packed:
        packs = begun(folder / "whole", args.format, QuantConfig({"": scheme}))
        pack_checkpoint(packs, folder / scheme)
        reads = begun(folder / scheme, args.format, QuantConfig())
        pairs = [(starting(reads), starting(packs)) for _ in range(args.rounds)]
        tell(f"a folder of {scheme}, {args.format}", pairs, "packing at the start")


def tell(what: str, pairs: list[tuple[Spent, Spent]], other: str) -> None:
    """Print what the first of each pair takes, and how much of what the second does."""
    clock, processor = (statistics.median(one[at] / two[at] for one, two in pairs) for at in (0, 1))
    print(
        f"{what}, {torch.get_num_threads()} threads: {min(one[0] for one, _ in pairs):.3f} s; medians of {len(pairs)} "
        f"ratios to {other}: {clock:.3f} by the clock, {processor:.3f} of processor time",
        flush=True,
    )


def begun(folder: Path, dtype: str, quantize: QuantConfig) -> Config:
    """A start from `folder` of which nothing is tried."""
    return Config(
        ModelConfig(str(folder), dtype=dtype, device="cpu"), quantize=quantize, schedule=ScheduleConfig(tier="fast")
    )


def loading(folder: Path, count: int, width: int, dtype: torch.dtype) -> Spent:
    """Of so many tensors."""
    network = construct(lambda: Weights(count, width, dtype))
    policy = DtypePolicy(dtype if dtype.is_floating_point else torch.float32)
    return spent(lambda: load_weights(network, folder, (), policy, "cpu"))


def starting(config: Config) -> Spent:
    """Of an engine."""
    return spent(lambda: start(config).close())


def spent(work: Callable[[], object]) -> Spent:
    """What `work` takes."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
