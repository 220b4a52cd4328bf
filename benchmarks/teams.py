"""What a step takes when so many ranks share it, as an elastic engine sees it: `python -m benchmarks.teams`.

One request after the other is drawn by an engine whose ranks may divide, which tries by itself what teams take. Each
rank has one thread, whatever the number of them, so that what is told is what further ranks gain. `lost` is what of a
step does not become less: the share that ranks take, over their part. Until it is measured, an engine takes it to be
a twentieth (`omnimuse/worker/teams.py`). Ranks that have no core of their own show what exchanges cost, and no gain.
"""

from __future__ import annotations

import argparse

from omnimuse import Config, DiffusionParams, ModelConfig, Omni, ParallelConfig
from omnimuse.worker.teams import LOSS


def seen(model: str, ranks: int, params: DiffusionParams, requests: int) -> list[tuple[str, int, int, float]]:
    """(network, row tokens, ranks, share) that an engine of so many ranks has learned from so many requests."""
    parallel = ParallelConfig(ulysses=ranks, elastic=True)
    with Omni(model, threads=ranks, config=Config(ModelConfig(model), parallel=parallel)) as omni:
        for _ in range(requests):
            [result] = omni.generate("a red circle", params, progress=False)
            if result.error is not None:
                raise result.error
        return omni.engine.runner.forwards.shares.table()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="omnimuse/shapes")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--side", type=int, help="of the picture, in pixels (default: the model's)")
    parser.add_argument("--steps", type=int, default=120, help="so many that the engine tries all teams (120)")
    parser.add_argument("--requests", type=int, default=24)
    args = parser.parse_args()
    params = DiffusionParams(args.steps, width=args.side, height=args.side, seed=1, output_type="latent")
    print("| ranks there are | row tokens | that share a step | of one rank's step | lost |\n|---|---|---|---|---|")
    for ranks in args.ranks:
        for _, tokens, count, share in seen(args.model, ranks, params, args.requests):
            if count > 1:
                print(f"| {ranks} | about {tokens} | {count} | {share:.2f} | {share - 1 / count:.2f} |", flush=True)
    print(f"\nan engine that has seen nothing takes {LOSS} to be lost")


if __name__ == "__main__":
    main()
