"""Tokens a second beside transformers' `generate`: `python -m benchmarks.tokens`.

Random language models in the layout of transformers go on from prompts of one length, greedily and without an end, one,
four and sixteen at a time: ours as so many requests in flight, in each of `--tiers`, theirs as a batch. All take turns
in one process, and must write the same tokens. Time is processor seconds, which other work on the machine disturbs less
than the clock; with one thread the two are the same. At width 64 nearly all of it is what is spent beside matrix
products.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from omnimuse import Ask, Config, DiffusionParams, GenerationParams, ModelConfig
from omnimuse.core.config import CompileConfig, ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import BRIEF, finished, start
from tests.checkpoints import qwen3

SEED = 1
CASES = {"width 64": (64, 3), "width 512": (512, 8)}
"""Width and layers."""
Start = Callable[[ModelConfig], Config]


@dataclass
class Sides:
    """The same weights in all engines, ours by what their rows are called, and the prompts in tokens, of one length."""

    engines: dict[str, Engine]
    theirs: Any
    prompts: list[list[int]]

    def ours(self, tier: str, count: int, tokens: int) -> tuple[float, list[list[int]]]:
        """Seconds in which `count` requests are written, and what."""
        engine = self.engines[tier]
        extra = GenerationParams(temperature=0, min_tokens=tokens, max_tokens=tokens)
        began, params = time.process_time(), DiffusionParams(seed=SEED, extra=extra)
        asks = [Ask({"tokens": prompt}, params) for prompt in self.prompts[:count]]
        found = finished(engine, *map(engine.make_request, asks), brief=BRIEF)
        return time.process_time() - began, [list(each.written[0].tokens) for each in found]

    def generate(self, count: int, tokens: int) -> tuple[float, list[list[int]]]:
        """The same by transformers."""
        began, ids = time.process_time(), torch.tensor(self.prompts[:count])  # [batch, length]
        with torch.inference_mode():
            made = self.theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                temperature=None,
                top_k=None,
                top_p=None,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
            )
        return time.process_time() - began, made[:, ids.shape[1] :].tolist()


def main() -> None:
    """Print one line per model and number of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48, help="written of each answer (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="of both sides in turns (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16], metavar="N")
    parser.add_argument("--tiers", nargs="+", default=["invariant", "fast"], choices=["invariant", "fast", "exact"])
    parser.add_argument("--compile", action="store_true", help="and with compiled blocks in the tier fast")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"| model | at a time | tier | {'ours':>8} | {'generate':>8} | ratio |\n|---|---|---|---|---|---|")
    for case in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            starts = {tier: partial(Config, schedule=ScheduleConfig(tier=tier)) for tier in args.tiers}
            if args.compile:
                fast = ScheduleConfig(tier="fast")
                starts["fast, compiled"] = partial(Config, schedule=fast, compile=CompileConfig("blocks"))
            sides = build(Path(folder) / "tiny", *CASES[case], max(args.batches), starts)
            for count in args.batches:
                theirs, *found = measure(sides, count, args.tokens, args.rounds)
                written = count * args.tokens
                for tier, ours in zip(starts, found, strict=True):
                    rates = f"{written / median(ours):8.0f} | {written / median(theirs):8.0f}"
                    ratio = median(their / our for our, their in zip(ours, theirs, strict=True))
                    print(f"| {case} | {count} | {tier} | {rates} | {ratio:.2f} |", flush=True)
            for engine in sides.engines.values():
                engine.close()


def build(folder: Path, width: int, layers: int, count: int, starts: Mapping[str, Start]) -> Sides:
    """An engine for each of `starts` over one checkpoint, and `count` prompts that differ and are equally long."""
    from transformers import Qwen3ForCausalLM

    qwen3.build(folder, width=width, layers=layers)
    sides = opened(folder, count, starts)
    theirs: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return replace(sides, theirs=theirs.eval())


def opened(folder: Path, count: int, starts: Mapping[str, Start]) -> Sides:
    """The same over the checkpoint in `folder`, without transformers'."""
    from transformers import AutoTokenizer

    model = ModelConfig(str(folder), dtype="float32", device="cpu")
    engines = {tier: start(chosen(model)) for tier, chosen in starts.items()}
    tokenizer, chance = AutoTokenizer.from_pretrained(folder), random.Random(SEED)
    words = ["a", "red", "circle", "on", "some", "small", "blue", "square"]
    by_length: dict[int, list[list[int]]] = {}
    for prompt in {" ".join(chance.choices(words, k=12)): None for _ in range(20 * count)}:
        ids = tokenizer(prompt).input_ids
        by_length.setdefault(len(ids), []).append(ids)
    return Sides(engines, None, max(by_length.values(), key=len)[:count])


def measure(sides: Sides, count: int, tokens: int, rounds: int) -> list[list[float]]:
    """Seconds of theirs, and of ours in each tier, by round, after one that warms up; all must write the same."""
    found: list[list[float]] = [[] for _ in range(1 + len(sides.engines))]
    for number in range(rounds + 1):
        theirs, expected = sides.generate(count, tokens)
        ours = [sides.ours(tier, count, tokens) for tier in sides.engines]
        if any(wrote != expected for _, wrote in ours):
            raise AssertionError("the two sides write different tokens")
        if number:
            for each, seconds in zip(found, [theirs, *(seconds for seconds, _ in ours)], strict=True):
                each.append(seconds)
    return found


if __name__ == "__main__":
    main()
