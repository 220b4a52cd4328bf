"""What it costs to refuse NaN in weights: `python -m benchmarks.loading`, as a share of loading from the page cache.

Seconds of processor time, which other work on the machine disturbs less than the clock: those of loading a stack of
linear layers, and those of looking at the numbers of the same file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from omnimuse.loader.tensors import construct
from omnimuse.loader.weights import DtypePolicy, load_weights, refuse_no_numbers


def main() -> None:
    """Print one line: seconds of loading, and the share of the check in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default="bfloat16", help="the number format of the file (default: bfloat16)")
    parser.add_argument("--dtype", default="bfloat16", help="the number format to load into (default: bfloat16)")
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many counts (default: 3)")
    args = parser.parse_args()

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(args.width, args.width, bias=False) for _ in range(args.layers)))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weight = torch.empty(args.width, args.width).uniform_(-0.1, 0.1).to(getattr(torch, args.stored))
        save_file({f"{layer}.weight": weight.clone() for layer in range(args.layers)}, path)
        policy = DtypePolicy(getattr(torch, args.dtype))
        whole = least(args.rounds, lambda: load_weights(construct(make), path.parent, (), policy, "cpu"))
        check = least(args.rounds, lambda: look(path))
        handed = least(args.rounds, lambda: hand_out(path))
    print(
        f"{args.layers} tensors of {args.width}x{args.width}, {args.stored} into {args.dtype}, "
        f"{torch.get_num_threads()} threads: {whole:.3f} s, of which the check takes {(check - handed) / whole:.0%}"
    )


def least(rounds: int, work: Callable[[], object]) -> float:
    """The least processor seconds that `work` took."""
    counts = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        counts.append(time.process_time() - began)
    return min(counts)


def look(path: Path) -> None:
    """The check of every tensor, twice, since the first look also brings it into the process."""
    with safe_open(path, "pt") as handle:
        for name in handle.offset_keys():
            tensor = handle.get_tensor(name)
            refuse_no_numbers(path, name, tensor)
            refuse_no_numbers(path, name, tensor)


def hand_out(path: Path) -> None:
    """The same with one look."""
    with safe_open(path, "pt") as handle:
        for name in handle.offset_keys():
            refuse_no_numbers(path, name, handle.get_tensor(name))


if __name__ == "__main__":
    main()
