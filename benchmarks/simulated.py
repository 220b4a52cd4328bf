"""The simulator beside the server it stands for: `python -m benchmarks.simulated`.

Starts a server with the demo model and sends it the same open loads as the simulator sees: from light to overload,
without a deadline and with one. Printed is the goodput of both, and the simulator's over the real. Its table is
measured immediately before and after every load, and what the simulator is told lies between the two: what others take
of the machine meanwhile is what it cannot know. A load in which the machine's speed changed by more than a tenth is
sent once more, and then only told. All of it takes two to four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from omnimuse.cli.bench import read_mix
from omnimuse.cli.bench import summarize as seen
from omnimuse.cli.bench_serve import Entry, Load, Outcome, Target, find_model, run_load
from omnimuse.cli.simulate_measure import measure
from omnimuse.simulate.arrivals import Arrival
from omnimuse.simulate.figures import Figures, summarize
from omnimuse.simulate.fleet import Plan, simulate
from omnimuse.simulate.fleet import Target as Wanted
from omnimuse.simulate.table import Table

START = 120.0
"""Seconds in which a server is ready."""
CLOSE = 0.15
"""How far apart the two may be, of the real one."""
STEADY = 0.1
"""How much the machine's speed may change while a load runs."""
MEASURED = ("step", "once", "beside")
TRIES = 2
"""How often a load is sent until it finds the machine steady."""


def serving(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server of the demo model, and its address, once it can draw."""
    log = folder / "log"
    command = [sys.executable, "-m", "omnimuse", "serve", "--port", "0", "--data", str(folder / "data")]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        said = log.read_text(errors="replace")
        if "ready in" in said and (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
            return process, found[0]
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')}")


@dataclass(frozen=True)
class Compared:
    """What came of a load on the server, and in the simulator at the same arrivals, and how much slower the machine was
    after it than before.
    """

    real: Figures
    made: Figures
    slower: float

    @property
    def steady(self) -> bool:
        """Whether the machine's speed stayed what it was."""
        return abs(self.slower - 1) <= STEADY

    @property
    def ratio(self) -> float:
        """The simulator's goodput over the real one."""
        return self.made["goodput"] / self.real["goodput"] if self.real["goodput"] else float("inf")


class Bench:
    """A server that is asked, and what its table was when it was last measured."""

    def __init__(self, target: Target, mix: Sequence[Entry], args: argparse.Namespace) -> None:
        self._target, self._mix, self._args = target, tuple(mix), args
        self.table: Table | None = None

    async def measured(self) -> Table:
        """The table now."""
        self.table = await measure(self._target, self._mix, self._args.samples, StringIO())
        return self.table

    def busy(self, table: Table) -> float:
        """Seconds for which a request of the mix keeps the server busy."""
        weights = sum(each.weight for each in self._mix)
        return sum(table.kinds[each.name].busy * each.weight for each in self._mix) / weights

    async def compare(self, share: float, slo: float, deadline: float | None) -> Compared:
        """Send a load of so much of what the server can do, until the machine was steady."""
        model = await find_model(self._target)
        for _ in range(TRIES):
            before = self.table or await self.measured()
            rate = share / self.busy(before)
            load = Load(self._mix, rate, seconds=self._args.seconds, model=model, deadline=deadline)
            outcomes: list[Outcome] = []
            await run_load(self._target, load, outcomes.append)
            after = await self.measured()
            real, made = seen(outcomes, slo), simulated(outcomes, between(before, after), slo, deadline)
            found = Compared(real, made, self.busy(after) / self.busy(before))
            if found.steady:
                break
        return found


def between(one: Table, two: Table) -> Table:
    """What lies in the middle of two measures of one server."""
    kinds = {
        name: replace(kind, **{part: (getattr(kind, part) + getattr(two.kinds[name], part)) / 2 for part in MEASURED})
        for name, kind in one.kinds.items()
    }
    return replace(one, kinds=kinds, together=(one.together + two.together) / 2)


def simulated(outcomes: Sequence[Outcome], table: Table, slo: float, deadline: float | None) -> Figures:
    """What the simulator says of what was sent."""
    due = sorted(outcomes, key=lambda outcome: outcome.due)
    arrivals = [Arrival(each.due, each.entry.name, target=deadline) for each in due]
    run = simulate(Plan(target=Wanted(seconds=deadline)), table, arrivals)
    run.outcomes = [replace(each, target=slo) for each in run.outcomes]
    return summarize(run)


async def main_loop(url: str, args: argparse.Namespace) -> int:
    """Measure, compare, print; at how many steady loads the two are too far apart, or 1 if none was steady."""
    bench = Bench(Target.read(url, ""), read_mix(args.mix), args)
    await bench.measured()  # the first requests of all are slow
    table = await bench.measured()
    slo = args.slo * max(kind.alone for kind in table.kinds.values())
    print(
        f"a request keeps the server busy for {bench.busy(table):.3f} s; together {table.together:.2f}; "
        f"in time: {slo:.2f} s"
    )
    print(
        "load  deadline  simulated/real  goodput: real  simulated  all: real  simulated  p50 s: real  simulated  slower"
    )
    apart, steady = 0, 0
    for share in args.loads:
        for deadline in (None, slo):
            found = await bench.compare(share, slo, deadline)
            steady += found.steady
            apart += found.steady and abs(found.ratio - 1) > CLOSE
            print(_row(share, deadline, found), flush=True)
    return apart if steady else 1


def _row(share: float, deadline: float | None, found: Compared) -> str:
    said = "none" if deadline is None else f"{deadline:.2f} s"
    columns = [f"{share:4.2f}  {said:8}", f"{found.ratio:13.2f}"]
    for name in ("goodput", "throughput"):
        columns += [f"{found.real[name]:13.2f}", f"{found.made[name]:10.2f}"]
    columns += [f"{each['latency']['p50'] or 0.0:13.2f}" for each in (found.real, found.made)]
    columns.append(f"{found.slower:7.2f}{'' if found.steady else '  (the machine was not steady)'}")
    return " ".join(columns)


def main() -> None:
    """Run it; ends with 1 if any load is more than 15 % apart while the machine was steady."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", default="128x128@8,64x64@8:2")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.8, 1.2], help="of what the server can do")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load (default: 12)")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--slo", type=float, default=3.0, help="in time, of what the longest kind takes alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url = serving(Path(folder))
        try:
            apart = asyncio.run(main_loop(url, args))
        finally:
            process.terminate()
            process.wait()
    raise SystemExit(int(apart > 0))


if __name__ == "__main__":
    main()
