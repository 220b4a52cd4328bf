"""What packed weights cost or save where a whole model writes: `python -m benchmarks.packed`.

A random language model of `--width` and `--layers`, of the kind of Qwen3 or with `--experts` in its layers of that of
Qwen3-Omni, writes greedily, one, four and sixteen answers at a time: without
and with each of `--schemes`, in each `--dtype`, in turns in one process; and reads prompts of `--prompts` tokens.
Prints tokens a second without, in the first dtype, and the time of all others as a ratio to that (medians of rounds).
Time is processor seconds; with one thread these are the clock's.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from benchmarks.tokens import Sides, Start, opened
from omnimuse import Config
from omnimuse.core.config import QuantConfig, ScheduleConfig
from omnimuse.quant.schemes import SCHEMES
from tests.checkpoints import qwen3, qwen3_omni

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
        ("experts", 0, "in each layer, of which a token asks four"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{about} (default: {value})")
    kinds = ("float32", "bfloat16", "auto")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=kinds, help="(default: bfloat16)")
    parser.add_argument("--tier", default="invariant", choices=("invariant", "fast", "exact"))
    parser.add_argument("--schemes", nargs="+", default=["int8", "int8-dynamic", "int4"], choices=SCHEMES)
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16], metavar="N")
    parser.add_argument(
        "--prompts", nargs="*", type=int, default=[], metavar="TOKENS", help="that are read, each alone"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    schedule = ScheduleConfig(tier=args.tier)
    starts = {
        (dtype, scheme): start_of(schedule, dtype, scheme)
        for dtype, scheme in product(args.dtype, [FLOATS, *args.schemes])
    }
    names = {
        f"{scheme}, {dtype}" if len(args.dtype) > 1 else scheme: start for (dtype, scheme), start in starts.items()
    }
    base, *others = names
    print(f"| at a time | tokens a second | {' | '.join(others)} |\n|{'---|' * (2 + len(others))}")
    with tempfile.TemporaryDirectory() as folder:
        made = checkpoint(Path(folder) / "random", args.width, args.layers, args.experts)
        sides = opened(made, max([1, *args.batches]), names)
        cases = [(str(count), count, args.tokens, 0) for count in args.batches]
        cases += [(f"prompt of {length}", 1, 1, length) for length in args.prompts]
        for told, count, tokens, length in cases:
            first, *found = seconds(sides, [base, *others], count, tokens, args.rounds, length)
            ratios = [median(one / base for one, base in zip(each, first, strict=True)) for each in found]
            spoken = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {told} | {(length or count * tokens) / median(first):.1f} | {spoken} |", flush=True)
        for engine in sides.engines.values():
            engine.close()


def checkpoint(folder: Path, width: int, layers: int, experts: int) -> Path:
    """A model with random weights."""
    if not experts:
        return qwen3.build(folder, width=width, layers=layers)
    wanted = {"num_experts": experts, "num_experts_per_tok": 4, "moe_intermediate_size": width // 2}
    return qwen3_omni.build(folder, speaks=False, thinker={"hidden_size": width, "num_hidden_layers": layers, **wanted})


def start_of(schedule: ScheduleConfig, dtype: str, scheme: str) -> Start:
    """How an engine with these weights in that format starts."""
    quantize = QuantConfig({"": scheme} if scheme != FLOATS else {})
    return lambda model: Config(replace(model, dtype=dtype), schedule=schedule, quantize=quantize)


def seconds(
    sides: Sides, names: Sequence[str], count: int, tokens: int, rounds: int, length: int = 0
) -> list[list[float]]:
    """What `count` answers take of each engine, by round, after one that warms up. Of a `length` prompts are others in
    every round, as none reads again what it remembers.
    """
    turns = []
    for number in range(rounds + 1):
        chance = random.Random(number)
        asked = replace(sides, prompts=[chance.choices(sides.prompts[0], k=length)]) if length else sides
        turns.append([asked.ours(name, count, tokens)[0] for name in names])
    return [list(each) for each in zip(*turns[1:], strict=True)]


if __name__ == "__main__":
    main()
