"""The computing part of the suite on machines that this one can pretend to be: `make test-machines`.

A machine is some environment variables and perhaps busy neighbours. Prints one line per machine and folder: passed or
failed, and the command that runs it alone. All of it takes hours. `--turn 3` runs of the tests that take turns by
commit (tests/turns.py) those of the third, as `make test` does; `--part 2/4` the second of four parts, in each of which
every machine runs other folders; `--only NAME` one machine. `--list` names them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

UNIT = ("attention", "cache", "diffusion", "engine", "layers", "models", "offload", "parallel", "pipeline", "worker")
ROOT = Path(__file__).resolve().parent.parent
INVARIANTS = tuple(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("tests/invariants/test_*.py")))
COMPUTING = (*INVARIANTS, "tests/parity", "tests/dist", "tests/test_demo.py", *(f"tests/unit/{room}" for room in UNIT))
PATIENT = "timeout=900"
"""Seconds after which a test that does not end is taken for one that never will: these machines are slow ones."""
NOTHING = 5
"""What pytest ends with where nothing is to run: none of a file's tests has its turn."""
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"  # so none outlives a run that is killed


@dataclass(frozen=True)
class Machine:
    """What it is called, its environment, and how many busy processes share it."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    neighbours: int = 0


MACHINES = (
    Machine("float32", {"OMNIMUSE_DTYPE": "float32"}),
    Machine("bfloat16", {"OMNIMUSE_DTYPE": "bfloat16"}),
    Machine("one-thread", {"OMP_NUM_THREADS": "1"}),
    Machine("two-threads", {"OMP_NUM_THREADS": "2"}),
    Machine("plain-kernels", {"ATEN_CPU_CAPABILITY": "default"}),
    Machine("avx2-kernels", {"ATEN_CPU_CAPABILITY": "avx2"}),
    Machine("avx2-products", {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Machine("busy", neighbours=2),
)


@dataclass(frozen=True)
class Part:
    """The `number`th of `count` parts of all pairs of a machine and a folder; every machine has a share of each."""

    number: int = 1
    count: int = 1

    @staticmethod
    def read(text: str) -> Part:
        """`2/4` is the second of four; argparse.ArgumentTypeError for what is none."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise argparse.ArgumentTypeError(f"{text!r} is no part; write 2/4 for the second of four")
        return Part(int(number), int(count))

    def of(self, tests: list[str], machine: int) -> list[str]:
        """Those of `tests` that the machine of this number runs."""
        return [test for place, test in enumerate(tests) if (place + machine) % self.count == self.number - 1]


def main(arguments: list[str] | None = None) -> int:
    """Run the machines that were asked for, one after the other; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [machine.name for machine in MACHINES]
    parser.add_argument("--only", choices=names, action="append", help="run this machine (may be repeated)")
    parser.add_argument("--part", type=Part.read, default=Part(), help="run a part, for instance 2/4")
    parser.add_argument("--turn", metavar="N", help="of tests that take turns, run the Nth's (default: all)")
    parser.add_argument("--list", action="store_true", help="print the machines and run nothing")
    parser.add_argument("tests", nargs="*", default=list(COMPUTING), help="what to run (default: all that computes)")
    args = parser.parse_args(arguments)
    wanted = [(number, each) for number, each in enumerate(MACHINES) if args.only is None or each.name in args.only]
    if args.list:
        print("\n".join(f"{machine.name}: {_spoken(machine)}" for _, machine in wanted))
        return 0
    chosen = [(machine, args.part.of(args.tests, number)) for number, machine in wanted]
    turn = ["--turn", args.turn] if args.turn else []
    outcomes = [run(machine, [*turn, test]) for machine, tests in chosen for test in tests]
    return int(not all(outcomes))


def run(machine: Machine, tests: list[str]) -> bool:
    """Run the tests on that machine and print its line, and what failed below it."""
    began = time.monotonic()
    # A compiler's cache of its own: torch's does not tell kernels of one kind of processor from those of another.
    with busy(machine.neighbours), tempfile.TemporaryDirectory(prefix="compiled-") as cache:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--no-header", "--tb=line", "-rfE", "-o", PATIENT, *tests],
            env={**os.environ, **machine.environment, "TORCHINDUCTOR_CACHE_DIR": cache},
            capture_output=True,
            text=True,
        )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["nothing was printed"]
    good = done.returncode in (0, NOTHING)
    word = "passed" if good else "FAILED"
    again = f"python -m tools.machines --only {machine.name} {' '.join(tests)}"
    print(f"{machine.name:14} {word}  {lines[-1]}  ({time.monotonic() - began:.0f} s; alone: {again})", flush=True)
    for line in lines:
        if not good and re.match("(FAILED|ERROR) ", line):
            print(f"    {line}", flush=True)
    return good


@contextmanager
def busy(count: int) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """`count` processes that do nothing but compute, for the length of the block."""
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        yield neighbours
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def _spoken(machine: Machine) -> str:
    words = [f"{name}={value}" for name, value in machine.environment.items()]
    return " ".join(words + ([f"beside {machine.neighbours} busy processes"] if machine.neighbours else []))


if __name__ == "__main__":
    sys.exit(main())
