"""What a warm-up takes, and what it saves whoever comes first: `python -m benchmarks.warming`.

Workers' starts, each in a process of its own, in turns: without a warm-up, with the smallest legal request (the default
of `omnimuse serve`) and, with `--default-size`, with one of the size that the model draws by default, as it once was.
Then the same request twice. Medians; the warm-up as a share of the start, and the first request over the second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.checkpoints import DEMO, EMPTY, RACES
from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.environment import SPINS
from omnimuse.core.request import Door
from omnimuse.engine.local import finished, start
from omnimuse.worker.warm_up import NONE, SMALL, warm_up_ask

DEFAULT = "default size"


class Times(NamedTuple):
    """Seconds: of the start, of the warm-up, of the first request and of the same once more."""

    start: float
    warm_up: float
    first: float
    second: float


def main() -> None:
    """Print one line per kind of warm-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(RACES), default="shapes", help="the demo model, or a near-empty one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--default-size", action="store_true", help="also as it once was; minutes for a video")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--warm-up", default=SMALL, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    kinds = [NONE, SMALL, *([DEFAULT] if args.default_size else [])]
    with tempfile.TemporaryDirectory() as folder:
        model = RACES[args.family].build(Path(folder) / "model", _kind(args.family))
        found = [(kind, measure(kind, model, args.family)) for _ in range(args.rounds) for kind in kinds]
    print(f"{args.family}, {_kind(args.family)}, medians of {args.rounds}")
    for kind in kinds:
        of = [times for each, times in found if each == kind]
        share = statistics.median(each.warm_up / each.start for each in of)
        ratio = statistics.median(each.first / each.second for each in of)
        print(f"warm-up {kind:12}  {share:8.2f} of the start   first request over the second {ratio:6.2f}")


def measure(kind: str, model: Path, family: str) -> Times:
    """The times of one start, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.warming", "--child", str(model), "--family", family, "--warm-up", kind]
    environment = {**os.environ, "GOMP_SPINCOUNT": SPINS}  # as a worker of the server has it
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Times(*json.loads(done.stdout))


def child(args: argparse.Namespace) -> Times:
    """What one process measures."""
    began = time.perf_counter()
    engine = start(Config(ModelConfig(args.child, device="cpu")))
    ready = time.perf_counter()
    ask = warm_up_ask(_size(engine.door) if args.warm_up == DEFAULT else args.warm_up, engine.door)
    if ask is not None:
        finished(engine, engine.make_request(ask))
    warm = time.perf_counter()
    race = RACES[args.family]
    height, width = race.sizes[_kind(args.family)]
    params = DiffusionParams(height=height, width=width, num_frames=race.frames.get(EMPTY), num_inference_steps=4)
    wanted = [Ask(f"a red circle, number {number}", params) for number in range(2)]
    times = []
    for each in wanted:
        before = time.perf_counter()
        finished(engine, engine.make_request(each))
        times.append(time.perf_counter() - before)
    engine.close()
    return Times(ready - began, warm - ready, *times)


def _size(door: Door) -> str:
    defaults = door.defaults
    sides = [defaults.width, defaults.height, *([defaults.num_frames] if defaults.num_frames else [])]
    return "x".join(map(str, sides))


def _kind(family: str) -> str:
    return DEMO if family == "shapes" else EMPTY


if __name__ == "__main__":
    main()
