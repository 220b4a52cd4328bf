"""What the tiers cost: `python -m benchmarks.tiers`, each as a ratio to "fast", which runs beside it, alternating.

Seconds of processor time, which other work on the machine disturbs less than the clock. The autoencoder is left out:
it runs for one request at a time in every tier.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.checkpoints import DEMO, RACES, SMALL
from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start

PROMPTS = ("a red circle", "a star above a square", "a blue circle on a green background", "a green triangle")


def main() -> None:
    """Print one line per checkpoint and number of requests in flight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(RACES), default="shapes")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="the least of so many counts (default: 3)")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8], help="in flight (default: 1 2 4 8)")
    parser.add_argument("--tiers", nargs="+", default=["fast", "invariant", "exact"])
    parser.add_argument("--side", type=int, help="height and width instead of the race's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    race = RACES[args.family]
    kind = DEMO if args.family == "shapes" else SMALL
    height, width = (args.side, args.side) if args.side else race.sizes[kind]
    params = DiffusionParams(
        num_inference_steps=args.steps,
        height=height,
        width=width,
        output_type="latent",
        num_frames=race.frames.get(kind),
    )
    params = replace(params, **{race.guided_by: race.guidance})  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        model = ModelConfig(str(race.build(Path(folder) / "model", kind)), dtype=args.dtype, device="cpu")
        engines = {
            tier: start(Config(model, schedule=ScheduleConfig(tier=tier, company="always"))) for tier in args.tiers
        }
        print(f"{args.family}, {width}x{height}, {args.dtype}, {args.threads} threads; ratios to {args.tiers[0]}")
        for requests in args.requests:
            counts = {tier: [] for tier in engines}  # type: dict[str, list[float]]
            for _ in range(args.rounds):
                for tier, engine in engines.items():
                    counts[tier].append(measure(engine, requests, params))
            least = {tier: min(seconds) for tier, seconds in counts.items()}
            ratios = "  ".join(f"{tier} {least[tier] / least[args.tiers[0]]:.2f}" for tier in args.tiers[1:])
            print(f"{requests} in flight: {args.tiers[0]} {least[args.tiers[0]]:.2f} s; {ratios}", flush=True)


def measure(engine: Engine, requests: int, params: DiffusionParams) -> float:
    """Processor seconds that `requests` together take."""
    for seed in range(requests):
        prompt = PROMPTS[seed % len(PROMPTS)]
        engine.submit(
            engine.make_request(Ask({"prompt": prompt, "negative_prompt": "grey"}, replace(params, seed=seed)))
        )
    began = time.process_time()
    while not engine.idle:
        engine.tick()
    return time.process_time() - began


if __name__ == "__main__":
    main()
