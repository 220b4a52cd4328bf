"""What it costs to refuse NaN in weights: `python -m benchmarks.loading`, as a ratio to loading without a look.

The same bytes are loaded as floats, each of which is looked at, and as whole numbers, which are only copied; in turns.
Told for the clock, and for processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from omnimuse.loader.tensors import construct
from omnimuse.loader.weights import DtypePolicy, load_weights

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


class Weights(nn.Module):
    """Square tensors of one number format."""

    def __init__(self, count: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        for number in range(count):
            self.register_buffer(f"w{number}", torch.empty(width, width, dtype=dtype))


def main() -> None:
    """Print one line: seconds of loading, and the ratios to loading without a look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="bfloat16", choices=[str(dtype).partition(".")[2] for dtype in BITS])
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--tensors", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    dtype = getattr(torch, args.format)
    weight = torch.empty(args.width, args.width).uniform_(-0.1, 0.1)
    with tempfile.TemporaryDirectory() as folder:
        looked, copied = Path(folder) / "looked", Path(folder) / "copied"
        for place, kind in ((looked, dtype), (copied, BITS[dtype])):
            place.mkdir()
            content = weight.to(dtype).view(kind)
            save_file({f"w{number}": content.clone() for number in range(args.tensors)}, place / "model.safetensors")
        pairs = [
            (seconds(looked, args.tensors, args.width, dtype), seconds(copied, args.tensors, args.width, BITS[dtype]))
            for _ in range(args.rounds)
        ]
    clock, processor = (statistics.median(one[at] / other[at] for one, other in pairs) for at in (0, 1))
    print(
        f"{args.tensors} tensors of {args.width}x{args.width}, {args.format}, {torch.get_num_threads()} threads: "
        f"{min(one[0] for one, _ in pairs):.3f} s; medians of {args.rounds} ratios to loading without a look: "
        f"{clock:.3f} by the clock, {processor:.3f} of processor time"
    )


def seconds(folder: Path, count: int, width: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of loading, by the clock and of processor time."""
    network = construct(lambda: Weights(count, width, dtype))
    clock, processor = time.perf_counter(), time.process_time()
    load_weights(network, folder, (), DtypePolicy(dtype if dtype.is_floating_point else torch.float32), "cpu")
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    main()
