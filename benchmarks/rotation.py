"""What turning queries and keys takes of a step: `python -m benchmarks.rotation --family flux`.

Processor seconds, which other work on the machine disturbs less than the clock: those of a step of the small
checkpoint, and those of the turns that its blocks take, called by themselves on tensors of the same shapes. In turns;
the least of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.checkpoints import RACES, SMALL
from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.rotary import rotary_table, rotate

AXES = (16, 24, 24)
HEADS = {"flux": 12, "z_image": 16}
"""Of the small checkpoints; their heads have as many numbers as the axes together."""


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(HEADS), default="flux")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    race = RACES[args.family]
    with tempfile.TemporaryDirectory() as folder:
        model = ModelConfig(str(race.build(Path(folder) / "model", SMALL)), dtype=args.dtype, device="cpu")
        engine = start(Config(model, schedule=ScheduleConfig(company="always")))
    height, width = race.sizes[SMALL]
    params = DiffusionParams(num_inference_steps=args.steps + 1, height=height, width=width, seed=1)
    engine.submit(engine.make_request(Ask("a red circle", params)))
    engine.tick()  # the first warms up
    [state] = engine.runner.states.values()
    [tokens] = set(state.working["tokens"].values())
    [network] = {step.network for step in state.plan}
    stacks = engine.runner.pipeline.ctx.components.wherever(network).stacks().values()
    blocks = sum(len(stack.blocks()) for stack in stacks)
    turns = turning(tokens, HEADS[args.family], getattr(torch, args.dtype), blocks)
    steps, turned = zip(*((seconds(lambda: tick(engine)), seconds(turns)) for _ in range(args.steps - 1)), strict=True)
    print(
        f"{args.family}, {args.dtype}, {torch.get_num_threads()} threads, {tokens} tokens, {blocks} blocks: a step "
        f"{min(steps):.3f} s, its turns {min(turned):.4f} s, {min(turned) / min(steps):.2%}"
    )
    engine.close()


def tick(engine: Engine) -> None:
    """One step; it is not the last, after which the picture is decoded."""
    engine.tick()


def turning(tokens: int, heads: int, dtype: torch.dtype, blocks: int) -> Callable[[], object]:
    """What turns queries and keys as often as a step does."""
    queries_and_keys = torch.randn(1, tokens, 2, heads, sum(AXES)).to(dtype)
    places = torch.arange(tokens) % 512
    table = rotary_table(torch.stack([places] * len(AXES), dim=-1), AXES, 256.0)[None]
    return lambda: [rotate(queries_and_keys, table) for _ in range(blocks)]


def seconds(work: Callable[[], object]) -> float:
    """The processor seconds of it."""
    began = time.process_time()
    with torch.inference_mode():
        work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
