"""Where the time of one request goes: `python -m benchmarks.where --family z_image --kind small`, for either engine.

Prints the operations that take most of it, and how many operations there are a step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoints import EMPTY, RACES
from benchmarks.contestants import CONTESTANTS, Wish


def main() -> None:
    """Draw one request under the profiler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(RACES), default="z_image")
    parser.add_argument("--kind", default=EMPTY)
    parser.add_argument("--engine", choices=sorted(CONTESTANTS), default="omnimuse")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guided", action="store_true", help="with guidance and a negative prompt")
    args = parser.parse_args()
    race = RACES[args.family]
    with tempfile.TemporaryDirectory() as folder:
        engine = CONTESTANTS[args.engine](race, race.build(Path(folder) / "model", args.kind), args.dtype)
    height, width = race.sizes[args.kind]
    guidance = race.guidance if args.guided else race.off
    counts, began = [], 0.0
    for steps in (2, 2 + args.steps):  # the first also warms up
        wish = Wish(f"a red circle, {steps}", steps, guidance, height, width, race.frames.get(args.kind))
        began = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            engine.draw([wish])
        counts.append(sum(each.count for each in seen.key_averages() if each.key.startswith("aten::")))
    total = time.perf_counter() - began
    each_step = (counts[1] - counts[0]) / args.steps
    print(f"{args.family}, {args.kind}, {args.engine}: {total:.2f} s; {each_step:.0f} operations a step")
    for each in sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)[:12]:
        seconds = each.self_cpu_time_total / 1e6
        print(f"{seconds:9.3f} s {seconds / total:6.1%} {each.count:6d}  {each.key}")
    engine.close()


if __name__ == "__main__":
    main()
