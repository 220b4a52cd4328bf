"""What adapters cost where blocks are compiled: `python -m benchmarks.worn`.

A random language model of `--width` and `--layers` with compiled blocks writes `--answers` at once, greedily: all with
one adapter, and each with one of its own, which are worn in turns. Prints the time of the latter as a ratio to that of
the former (the median of rounds, in turns, in one process). Time is processor seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from omnimuse import Ask, Config, DiffusionParams, GenerationParams, ModelConfig
from omnimuse.core.config import CompileConfig
from omnimuse.core.loras import Lora
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import BRIEF, finished, start
from tests.checkpoints import qwen3
from tests.checkpoints.adapters import layers_telling, peft, write

PROMPT = [5, 6, 7, 8]


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value, about in (
        ("width", 1024, "of the model"),
        ("layers", 6, "of the model"),
        ("answers", 2, "at a time"),
        ("tokens", 24, "written of each answer"),
        ("rounds", 5, "of both in turns"),
        ("threads", 1, "that compute"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{about} (default: {value})")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = qwen3.build(Path(name) / "model", width=args.width, layers=args.layers)
        layers = layers_telling(folder)
        files = [
            Lora(str(write(Path(name) / f"{number}.safetensors", layers, peft("base_model.model."), seed=number)))
            for number in range(args.answers)
        ]
        engine = start(Config(ModelConfig(str(folder), "float32", "cpu"), compile=CompileConfig("blocks")))
        sides = [files[:1] * args.answers, files]
        turns = [[seconds(engine, side, args.tokens) for side in sides] for _ in range(args.rounds + 2)][2:]  # compiled
        engine.close()
    ratio = median(own / one for one, own in turns)
    print(f"| answers | one adapter for all, s | one each |\n|---|---|---|\n| {args.answers} ", end="")
    print(f"| {median(one for one, _ in turns):.2f} | {ratio:.2f} |")


def seconds(engine: Engine, worn: Sequence[Lora], tokens: int) -> float:
    """What it takes to write as many answers as adapters are `worn`, one each."""
    began, extra = time.process_time(), GenerationParams(temperature=0, min_tokens=tokens, max_tokens=tokens)
    asks = [Ask({"tokens": PROMPT}, DiffusionParams(seed=1, loras=(lora,), extra=extra)) for lora in worn]
    finished(engine, *map(engine.make_request, asks), brief=BRIEF)
    return time.process_time() - began


if __name__ == "__main__":
    main()
