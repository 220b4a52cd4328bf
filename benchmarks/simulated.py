"""The simulator beside the server it stands for: `python -m benchmarks.simulated`.

Starts a server with the demo model, measures its table, and sends it the same open loads as the simulator sees: from
light to overload, without a deadline and with one. Printed is the goodput of both, and the simulator's over the real.
The machine must be quiet: what others take between measuring and the load is what the simulator does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from omnimuse.cli.bench import read_mix
from omnimuse.cli.bench import summarize as seen
from omnimuse.cli.bench_serve import Load, Outcome, Target, find_model, run_load
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


async def compare(target: Target, table: Table, load: Load, slo: float) -> tuple[Figures, Figures]:
    """What came of a load on the server, and in the simulator at the same arrivals."""
    outcomes: list[Outcome] = []
    await run_load(target, load, outcomes.append)
    real = seen(outcomes, slo)
    due = sorted(outcomes, key=lambda outcome: outcome.due)
    arrivals = [Arrival(each.due, each.entry.name, target=load.deadline) for each in due]
    run = simulate(Plan(target=Wanted(seconds=load.deadline)), table, arrivals)
    run.outcomes = [replace(each, target=slo) for each in run.outcomes]
    return real, summarize(run)


async def main_loop(url: str, args: argparse.Namespace) -> int:
    """Measure, compare, print; the number of loads at which the two are too far apart."""
    target, mix = Target.read(url, ""), read_mix(args.mix)
    table = await measure(target, mix, args.samples, sys.stderr)
    busy = sum(table.kinds[each.name].busy * each.weight for each in mix) / sum(each.weight for each in mix)
    slo = args.slo * max(kind.alone for kind in table.kinds.values())
    print(f"a request keeps the server busy for {busy:.3f} s; together {table.together:.2f}; in time: {slo:.2f} s")
    print("load  deadline  simulated/real  goodput: real  simulated  all: real  simulated   p50 s: real  simulated")
    apart = 0
    for share in args.loads:
        for deadline in (None, slo):
            load = Load(mix, share / busy, seconds=args.seconds, model=await find_model(target), deadline=deadline)
            real, made = await compare(target, table, load, slo)
            good = made["goodput"] / real["goodput"] if real["goodput"] else float("inf")
            apart += abs(good - 1) > CLOSE
            said = "none" if deadline is None else f"{deadline:.2f} s"
            columns = [f"{share:4.2f}  {said:8}", f"{good:13.2f}"]
            for name in ("goodput", "throughput"):
                columns += [f"{real[name]:13.2f}", f"{made[name]:10.2f}"]
            columns += [f"{each['latency']['p50'] or 0.0:13.2f}" for each in (real, made)]
            print(*columns, flush=True)
    return apart


def main() -> None:
    """Run it; ends with 1 if any load is more than 15 % apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", default="128x128@8,64x64@8:2")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.4, 0.8, 1.2], help="of what the server can do")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load (default: 30)")
    parser.add_argument("--samples", type=int, default=6)
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
