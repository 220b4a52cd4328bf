"""Pictures a second of the engine called directly, beside `omnimuse bench serve`: `python -m benchmarks.direct`.

The same prompts, size and steps as that command sends by default; `--together` requests are in flight at once.
"""

from __future__ import annotations

import argparse
import time

from omnimuse import DiffusionParams, Omni


def main() -> None:
    """Draw for a while and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="omnimuse/shapes")
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--duration", type=float, default=20.0, help="seconds (default: 20)")
    args = parser.parse_args()
    with Omni(args.model) as omni:
        drawn, began = 0, 0.0
        while not began or time.perf_counter() - began < args.duration:
            prompts = [f"a red circle, number {drawn + i}" for i in range(args.together)]
            results = omni.generate(prompts, DiffusionParams(seed=drawn), progress=False)
            assert all(result.error is None for result in results)
            if began:
                drawn += args.together
            else:
                began = time.perf_counter()  # the first round warms up
        print(f"{drawn / (time.perf_counter() - began):.2f} pictures a second, {args.together} in flight")


if __name__ == "__main__":
    main()
