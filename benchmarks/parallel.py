"""What a step takes when ranks share the work, beside one rank: `python -m benchmarks.parallel ulysses=2 tensor=2`.

Every division of the work is tried in turn with one rank, `--rounds` times, so that what else the machine does falls on
all alike; printed are medians and their ratio to one rank. On a CPU ranks share the cores, and only the cost shows.
"""

from __future__ import annotations

import argparse
from statistics import median

from omnimuse import Config, DiffusionParams, ModelConfig, Omni, ParallelConfig


def division(text: str) -> ParallelConfig:
    """`ulysses=2,ring=2` as a configuration."""
    pairs = (part.split("=") for part in text.split(","))
    return ParallelConfig(**{axis.strip(): int(count) for axis, count in pairs})


def step(model: str, parallel: ParallelConfig, threads: int | None, params: DiffusionParams, together: int) -> float:
    """Seconds of a step with `together` requests in flight, after one round that warms up."""
    with Omni(model, threads=threads, config=Config(ModelConfig(model), parallel=parallel)) as omni:
        for _ in range(2):
            results = omni.generate(["a red circle"] * together, params, progress=False)
            for result in results:
                if result.error is not None:
                    raise result.error
    steps = results[0].params.num_inference_steps
    assert steps
    return max(result.timings["denoise"] for result in results) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("divisions", nargs="+", help="such as tensor=2 or ulysses=2,ring=2")
    parser.add_argument("--model", default="omnimuse/shapes")
    parser.add_argument("--threads", type=int, help="of all ranks together")
    parser.add_argument("--together", type=int, default=1, help="requests in flight (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    params = DiffusionParams(seed=1, output_type="latent")
    tried = [ParallelConfig(), *map(division, args.divisions)]
    seconds: dict[str, list[float]] = {str(parallel): [] for parallel in tried}
    for _ in range(args.rounds):
        for parallel in tried:
            seconds[str(parallel)].append(step(args.model, parallel, args.threads, params, args.together))
    alone = median(seconds[str(ParallelConfig())])
    for name, found in seconds.items():
        print(f"{name:24} {1000 * median(found):8.2f} ms a step  {median(found) / alone:5.2f} of one rank")


if __name__ == "__main__":
    main()
