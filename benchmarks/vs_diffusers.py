"""The race against diffusers: `python -m benchmarks.vs_diffusers`.

Same checkpoint, dtype, threads, steps and seed, alternating, each engine in a process of its own, as people run them;
then a fresh process of each for its peak memory, and from the command line to the file for its cold start. Prints
medians and ratios (below 1: we are faster), writes JSON and a plot. The floor is the operations of one request over
the matrix rate that this machine reaches in that dtype, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import EMPTY, RACES, Race
from benchmarks.contestants import CONTESTANTS, Wish
from benchmarks.processes import Apart, cold_start, peak_memory

PROMPT = "a red circle above the blue square on white"
Row = dict[str, Any]
ONE, GUIDED, FOUR, MIXED, SHORT = "one request", "with guidance", "n=4", "four mixed, to the last", "short behind long"
CASES = (ONE, GUIDED, FOUR, MIXED, SHORT)


def main() -> None:
    """Run the chosen races and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=sorted(RACES), help="default: all")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over this many (default: 5)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a request (default: 8)")
    parser.add_argument("--compile", action="store_true", help="both engines compiled, too, where the aims name it")
    parser.add_argument("--kind", help="only checkpoints of this kind")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all; large models take hours")
    parser.add_argument("--no-processes", action="store_true", help="leave out peak memory and cold start")
    parser.add_argument("--json", type=Path, default=Path("docs/race.json"), help="kept rows of others are replaced")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/race.png"))
    args = parser.parse_args()
    for name in args.family or sorted(RACES):
        race = RACES[name]
        for kind in race.sizes if args.kind is None else {args.kind} & set(race.sizes):
            with tempfile.TemporaryDirectory() as folder:
                rows = run(race, kind, race.build(Path(folder) / "model", kind), args)
            record(rows, args)


def record(rows: list[Row], args: argparse.Namespace) -> None:
    """Put the rows into the file, in place of older ones of the same case, and draw the plot anew."""
    old = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    mine = {(row["family"], row["kind"], row["case"]) for row in rows}
    kept = [row for row in old if (row["family"], row["kind"], row["case"]) not in mine] + rows
    facts = {"dtype": args.dtype, "threads": torch.get_num_threads(), "torch": torch.__version__}
    args.json.write_text(json.dumps(facts | {"rows": kept}, indent=1) + "\n")
    plot(kept, args.plot)


def run(race: Race, kind: str, folder: Path, args: argparse.Namespace) -> list[Row]:
    """Every case of one family and size."""
    height, width = race.sizes[kind]
    steps = args.steps if kind != EMPTY else 50
    plain = Wish(PROMPT, steps, race.off, height, width, race.frames.get(kind))
    guided = replace(plain, guidance=race.guidance)
    ours, theirs = pair = [Apart(name, race, folder, args.dtype) for name in CONTESTANTS]
    print(f"\n{race.family}, {kind}, {width}x{height}, {steps} steps, {args.dtype}", flush=True)
    if kind == EMPTY:
        rows = [overhead(plain, pair, args.rounds)]
        print(line(rows[0]), flush=True)
    else:
        compiled = [Apart(name, race, folder, args.dtype, True) for name in CONTESTANTS] if args.compile else []
        all_four, wanted = pair + compiled, args.case or CASES
        races: dict[str, Callable[[], Row]] = {
            ONE: lambda: compare(ONE, [plain], all_four, args.rounds),
            GUIDED: lambda: compare(GUIDED, [guided], all_four, args.rounds),
            FOUR: lambda: compare(FOUR, [replace(plain, outputs=4)], pair, args.rounds),
            MIXED: lambda: compare(MIXED, mixed(plain), pair, args.rounds),
            SHORT: lambda: short_behind_long(ours, theirs, plain, args.rounds),
        }
        rows = []
        for case in wanted:
            rows.append(races[case]())
            print(line(rows[-1]), flush=True)
        if ONE in wanted:
            measured = next(row for row in rows if row["case"] == ONE)
            rows.append(floor(ours, plain, measured, args.dtype))
            print(line(rows[-1]), flush=True)
        for contestant in compiled:
            contestant.close()
    for contestant in pair:
        contestant.close()
    if not args.no_processes and kind != EMPTY:
        beside = [peak_memory(race, folder, args.dtype, plain)]
        if plain.frames is None:
            beside.append(cold_start(race, folder, args.dtype, plain))
        print("\n".join(line(row) for row in beside), flush=True)
        rows += beside
    return [row | {"family": race.family, "kind": kind} for row in rows]


def mixed(plain: Wish) -> list[Wish]:
    """Four requests of different sizes and steps, half of them large."""
    steps, height, width = plain.steps, plain.height // 2 // 16 * 16, plain.width // 2 // 16 * 16
    return [
        replace(plain, prompt="a red circle", seed=1),
        replace(plain, prompt="two green stars", steps=steps // 2, height=height, width=width, seed=2),
        replace(plain, prompt="a small yellow heart below a blue square", height=height, seed=3),
        replace(plain, prompt="a square", steps=steps // 2, seed=4),
    ]


def compare(case: str, wishes: Sequence[Wish], contestants: Sequence[Apart], rounds: int) -> Row:
    """Medians of all, alternating who goes first; the first round warms up.

    Every round has other prompts, so that nobody answers from memory.
    """
    times: dict[str, list[list[float]]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds + 1):
        asked = [replace(wish, prompt=f"{wish.prompt}, {case}, number {number}") for wish in wishes]
        for contestant in contestants if number % 2 else contestants[::-1]:
            finished = contestant.draw(asked)
            if number:
                times[contestant.name].append(finished)
    row: Row = {"case": case, "unit": "s"}
    row |= {name: statistics.median(max(run) for run in runs) for name, runs in times.items()}
    if len(wishes) > 1:
        mean = {name: statistics.median(statistics.mean(run) for run in runs) for name, runs in times.items()}
        row["mean_ratio"] = mean["omnimuse"] / mean["diffusers"]
    return row


def overhead(plain: Wish, contestants: Sequence[Apart], rounds: int) -> Row:
    """What one more step takes: the difference of a request of many steps and one of few, over the steps between."""
    few = replace(plain, steps=plain.steps // 10)
    slow, quick = (compare("overhead of a step", [wish], contestants, rounds) for wish in (plain, few))
    each = {c.name: (slow[c.name] - quick[c.name]) / (plain.steps - few.steps) for c in contestants}
    return slow | each | {"unit": "ms", "scale": 1000}


def short_behind_long(ours: Apart, theirs: Apart, plain: Wish, rounds: int) -> Row:
    """A short request that arrives after the first step of a long one, against first come first served."""
    long = replace(plain, steps=plain.steps * 3, seed=5)
    side = {"height": plain.height // 2 // 16 * 16, "width": plain.width // 2 // 16 * 16}
    short = replace(plain, prompt="a star", steps=max(2, plain.steps // 2), seed=6, **side)
    found, served = [], []
    for _ in range(max(1, rounds // 2)):
        found.append(ours.overtake(long, short))
        [long_alone], [short_alone] = theirs.draw([long]), theirs.draw([short])
        served.append(long_alone * (1 - 1 / long.steps) + short_alone)
    return {"case": SHORT, "unit": "s", "omnimuse": statistics.median(found),
            "diffusers": statistics.median(served)}  # fmt: skip


def floor(ours: Apart, wish: Wish, measured: Row, dtype: str) -> Row:
    """The operations of one request over the matrix rate of this machine: no engine is faster without doing less."""
    rate = matrix_rate(getattr(torch, dtype))
    seconds = ours.operations(wish) / rate
    return {"case": "floor (share of the limit)", "unit": "s", "floor": seconds, "tflops": rate / 1e12,
            "omnimuse": measured["omnimuse"], "diffusers": measured["diffusers"]}  # fmt: skip


def matrix_rate(dtype: torch.dtype, side: int = 2048) -> float:
    """Operations a second of a square matrix product, the best of several."""
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def line(row: Row) -> str:
    """One row of the table."""
    scale, unit = row.get("scale", 1.0), row["unit"]
    if "floor" in row:
        shares = [row["floor"] / row[name] for name in ("omnimuse", "diffusers")]
        text = f"  {row['case']:28} {row['floor']:9.3f} s at {row['tflops']:.2f} TFLOP/s: we reach {shares[0]:.0%}, "
        return text + f"diffusers {shares[1]:.0%}"
    ours, theirs = row["omnimuse"] * scale, row["diffusers"] * scale
    text = f"  {row['case']:28} {ours:9.3f} {unit}  against {theirs:9.3f} {unit}   ratio {ours / theirs:5.2f}"
    if "mean_ratio" in row:
        text += f"   mean per request {row['mean_ratio']:.2f}"
    if "omnimuse compiled" in row:
        mine, best = row["omnimuse compiled"], row["diffusers compiled"]
        text += f"   compiled {mine:.3f} against {best:.3f}: {mine / best:.2f}, of eager {mine / theirs:.2f}"
    return text


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratios as bars, one group per family."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [row for row in rows if "floor" not in row]
    bars = [(f"{row['family']} ({row['kind']})  {row['case']}", row["omnimuse"] / row["diffusers"]) for row in shown]
    for row in shown:
        if "omnimuse compiled" in row:
            label = f"{row['family']} ({row['kind']})  {row['case']}, both compiled"
            bars.append((label, row["omnimuse compiled"] / row["diffusers compiled"]))
    labels, ratios = [label for label, _ in sorted(bars)], [ratio for _, ratio in sorted(bars)]
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(bars) + 1.2))
    axes.barh(labels[::-1], ratios[::-1], color=["#3a7" if ratio < 1 else "#c55" for ratio in ratios[::-1]])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("time (or memory) of omnimuse over diffusers; left of the line is better")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
