"""Seconds a picture beside neighbours that want the cores, too: `python -m benchmarks.threads`.

Engines that differ only in their threads, each in a process of its own, draw in turns: quiet, beside one and beside two
busy processes. Prints medians, and each over the best of its row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import PIPE

from omnimuse import Config, DiffusionParams, ModelConfig
from omnimuse.core.environment import SPINS
from omnimuse.core.machine import cores
from omnimuse.core.request import Ask
from omnimuse.engine.local import finished, start

OURS = "omnimuse"
COLUMNS = {
    OURS: {"GOMP_SPINCOUNT": SPINS},  # as a worker of the server has it
    "spinning": {},
    "asleep": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="omnimuse/shapes")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of drawing in a row, a round and engine (default: 3)"
    )
    parser.add_argument("--draw", metavar="COLUMN", help=argparse.SUPPRESS)  # what a child is started with
    args = parser.parse_args()
    if args.draw:
        child(args)
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Every engine in turn, in every company, some rounds."""
    print(f"load {os.getloadavg()[0]:.1f} on {cores()} cores before the first was begun")
    engines = {name: begin(name, args) for name in COLUMNS}
    found: dict[tuple[int, str], list[float]] = {}
    try:
        for _ in range(args.rounds):
            for neighbours in (0, 1, 2):
                with busy(neighbours):
                    for name, engine in engines.items():
                        found.setdefault((neighbours, name), []).extend(ask(engine))
    finally:
        for engine in engines.values():
            engine.kill()
    print(f"{'neighbours':12}" + "".join(f"{name:>20}" for name in COLUMNS) + f"{'ours over alone':>18}")
    alone = statistics.median(found[0, OURS])
    for neighbours in (0, 1, 2):
        row = {name: statistics.median(found[neighbours, name]) for name in COLUMNS}
        cells = "".join(f"{seconds:11.3f} s ({seconds / min(row.values()):4.2f})" for seconds in row.values())
        print(f"{neighbours:<12}{cells}{row[OURS] / alone:18.2f}")


def begin(name: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    """An engine in a process of its own, loaded."""
    chosen = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in chosen} | COLUMNS[name]
    command = [sys.executable, "-m", "benchmarks.threads", "--draw", name]
    command += ["--model", args.model, "--dtype", args.dtype, "--seconds", str(args.seconds)]
    engine = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment)
    ask(engine)
    return engine


def ask(engine: subprocess.Popen[str]) -> list[float]:
    """Have it draw for a while; seconds of each picture."""
    assert engine.stdin is not None and engine.stdout is not None
    print("draw", file=engine.stdin, flush=True)
    seconds: list[float] = json.loads(engine.stdout.readline())
    return seconds


@contextmanager
def busy(count: int) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """So many processes that do nothing, as fast as they can."""
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield neighbours
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def child(args: argparse.Namespace) -> None:
    """Draw for a while for each line that comes."""
    engine = start(Config(ModelConfig(args.model, dtype=args.dtype)))
    if args.draw != OURS:
        engine.governor = None
    drawn = 0
    for _ in sys.stdin:
        taken, end = [], time.perf_counter() + args.seconds
        while not taken or time.perf_counter() < end:
            drawn += 1
            began = time.perf_counter()
            finished(engine, engine.make_request(Ask(f"a red circle, number {drawn}", DiffusionParams(seed=drawn))))
            taken.append(time.perf_counter() - began)
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
