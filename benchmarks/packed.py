"""What packed weights cost or save where a whole model writes: `python -m benchmarks.packed`.

A random language model of `--width` and `--layers` writes greedily, one, four and sixteen answers at a time: without
and with each of `--schemes`, in turns in one process. Prints tokens a second without, and of every scheme its time as
a ratio to that (medians of rounds). Time is processor seconds; with one thread these are the clock's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.tokens import Sides, Start, build
from omnimuse import Config
from omnimuse.core.config import QuantConfig, ScheduleConfig
from omnimuse.quant.schemes import SCHEMES

FLOATS = "floats"


def main() -> None:
    """Print one line per number of answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, about in (
        ("width", 1024, "of the model"),
        ("layers", 6, "of the model"),
        ("tokens", 24, "written of each answer"),
        ("rounds", 5, "of all in turns"),
        ("threads", 1, "that compute"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{about} (default: {value})")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="(default: bfloat16)")
    parser.add_argument("--tier", default="invariant", choices=("invariant", "fast", "exact"))
    parser.add_argument("--schemes", nargs="+", default=["int8", "int8-dynamic", "int4"], choices=SCHEMES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], metavar="N")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    schedule = ScheduleConfig(tier=args.tier)
    starts: dict[str, Start] = {FLOATS: partial(Config, schedule=schedule)}
    for scheme in args.schemes:
        starts[scheme] = partial(Config, schedule=schedule, quantize=QuantConfig({"": scheme}))
    print(f"| at a time | tokens a second | {' | '.join(args.schemes)} |\n|{'---|' * (2 + len(args.schemes))}")
    with tempfile.TemporaryDirectory() as folder:
        sides = build(Path(folder) / "random", args.width, args.layers, max(args.batches), starts, args.dtype)
        for count in args.batches:
            floats, *found = seconds(sides, [FLOATS, *args.schemes], count, args.tokens, args.rounds)
            ratios = [median(one / base for one, base in zip(each, floats, strict=True)) for each in found]
            told = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {count} | {count * args.tokens / median(floats):.1f} | {told} |", flush=True)
        for engine in sides.engines.values():
            engine.close()


def seconds(sides: Sides, names: Sequence[str], count: int, tokens: int, rounds: int) -> list[list[float]]:
    """What `count` answers take of each engine, by round, after one that warms up."""
    turns = [[sides.ours(name, count, tokens)[0] for name in names] for _ in range(rounds + 1)]
    return [list(each) for each in zip(*turns[1:], strict=True)]


if __name__ == "__main__":
    main()
