"""Everything that an accelerator shows, in minutes: `make gpu`, or `python -m benchmarks.gpu`.

Networks of published size with random weights, drawn on the device, beside diffusers eager and with its own compile:
seconds of a step and of whole requests, share of the measured matrix rate, host gap, memory, decoding, offload, start.
Both engines run whole pipelines, one after the other on the same machine; ratios above 1 mean that we are faster. What
the aims are judged by comes first, and what an earlier call has not measured before what it has: who calls again goes
on. Prints every row and then all of them as a table, writes docs/gpu.json and renders docs/gpu.md. Without an
accelerator the same code runs the tiny checkpoints, and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.published import MODELS, published
from benchmarks.steps import Case, Ours, Theirs, busy_share, memory_rate, product_rate

Row = dict[str, Any]
SIDES = (512, 1024)
LIMIT = 8 * 60.0
PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "gpu.json"
MODES = ("eager", "compiled", "layers", "teacache", "fp8")
NAMED = ("model", "engine", "mode", "case")
"""What tells one row from another."""


STEPPED = ("eager", "plain", "compiled")
"""Modes that are measured in every case; of the others one request says enough."""
FIRST = "z_image"
"""The model of the aims."""


@dataclass(frozen=True)
class Cell:
    """One figure: of a model by an engine in a mode, `what` of `case`: its steps, all of it, or its decoding alone."""

    model: str
    kind: type[Ours | Theirs]
    mode: str
    case: Case
    what: Literal["steps", "whole", "decode"] = "steps"

    @property
    def name(self) -> str:
        """Of the case, as rows have it."""
        names = {"steps": str(self.case), "whole": f"whole {self.case}", "decode": f"decode {self.case.side}"}
        return names[self.what]

    @property
    def key(self) -> tuple[str, ...]:
        """By which its row is told from others."""
        return (self.model, self.kind.name, self.mode, self.name)


@dataclass
class Budget:
    """Minutes are few: what does not fit any more is left out, and said. `taken` are seconds that cells have taken."""

    seconds: float
    began: float
    left_out: list[str]
    taken: dict[tuple[str, ...], float]
    clock: Callable[[], float] = time.perf_counter

    def allows(self, key: tuple[str, ...], usual: float) -> bool:
        """Whether what has this key still fits: it takes as long as it did, or as the longest of its engine and mode,
        or as is `usual`.
        """
        alike = [seconds for other, seconds in self.taken.items() if other[:3] == key[:3] and other[3] != "start"]
        seconds = self.taken.get(key) or max([usual, *(alike if key[3] != "start" else [])])
        if self.clock() - self.began + seconds < self.seconds:
            return True
        self.left_out.append(" ".join(key))
        return False


def main() -> None:
    """Measure the chosen models and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(MODELS), help="default: all that fit the device")
    parser.add_argument("--side", type=int, action="append", help=f"of pictures (default: {SIDES})")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8], help="in flight (default: 1 2 4 8)")
    parser.add_argument("--steps", type=int, default=6, help="of every request; the first two warm up (default: 6)")
    parser.add_argument("--mode", nargs="+", default=list(MODES), choices=Ours.modes, help="of both engines")
    parser.add_argument("--tiny", action="store_true", help="the tiny checkpoints, on any device")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="leave out what does not fit (default: 480)")
    parser.add_argument("--json", type=Path, help="rows there are kept (default: docs/gpu.json, of tiny ones in build)")
    parser.add_argument("--page", action="store_true", help="write the page beside kept rows again, measure nothing")
    args = parser.parse_args()
    on = torch.accelerator.is_available()
    tiny = args.tiny or not (on or args.page)
    args.json = args.json or (Path("build", "gpu.json") if tiny else PUBLISHED)
    if tiny and not args.page and args.json.resolve() == PUBLISHED:
        parser.error(f"{args.json} has what GPUs showed of published sizes, and nothing else; name another file")
    before: dict[str, Row] = json.loads(args.json.read_text()) if args.json.exists() else {}
    if args.page:
        if not before:
            parser.error(f"{args.json} has no rows: measure first, or name a file that has by --json")
        write(args.json, before)
        return
    if tiny and not args.tiny:
        print(f"torch {torch.__version__} finds no accelerator: this shows that the code runs, into {args.json}")
    device = torch.accelerator.current_accelerator() if on else torch.device("cpu")
    assert device is not None
    facts = machine(device) | {"run": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), "commit": commit()}
    print(json.dumps(facts), flush=True)
    rows = before.get(facts["device"], {}).get("rows", [])
    taken = {tuple(row[key] for key in NAMED): row["seconds"] for row in rows if "seconds" in row}
    budget = Budget(args.seconds, time.perf_counter(), [], taken)
    chosen = args.model or list(MODELS)
    if not tiny:
        for name in [name for name in chosen if MODELS[name].gigabytes * 1.3 > facts["memory_gb"]]:
            budget.left_out.append(f"{name}: {MODELS[name].gigabytes} GB of weights do not fit")
            chosen.remove(name)
    cells = planned(chosen, args.mode, [32] if tiny else args.side or SIDES, args.requests, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"  # an earlier call warms nothing
        for row in figures(in_order(cells, rows), Path(folder), device, facts, budget, rows, tiny=tiny):
            rows = [old for old in rows if any(old[key] != row[key] for key in NAMED)] + [row]
            print(json.dumps(row), flush=True)
            write(args.json, before | {facts["device"]: facts | {"rows": rows, "left_out": budget.left_out}})
    measured = facts | {"rows": rows, "left_out": budget.left_out}
    write(args.json, before | {facts["device"]: measured})
    print(page(facts["device"], measured))


def planned(
    models: Sequence[str], modes: Sequence[str], sides: Sequence[int], requests: Sequence[int], steps: int
) -> list[Cell]:
    """All cells of these models."""
    cases = [
        Case(side, count, guided, steps)
        for side in sorted(sides, reverse=True)
        for count in requests
        for guided in (False, True)
    ]
    large, cells = max(sides), list[Cell]()
    for model, mode, kind in itertools.product(models, modes, (Ours, Theirs)):
        if mode in kind.modes:
            few = [case for case in cases if case.side == large and case.requests in (1, 8)]
            wanted = cases if mode == "eager" else few if mode in STEPPED else [Case(large, 1, False, steps)]
            cells += [Cell(model, kind, mode, case) for case in wanted]
            if mode in ("eager", "compiled"):
                cells += [
                    Cell(model, kind, mode, case, "whole")
                    for case in wanted
                    if case.requests in (1, 8) and not case.guided
                ]
            if mode == "eager":
                cells.append(Cell(model, kind, mode, Case(large, 1, False, 2), "decode"))
    return cells


def in_order(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """Those first that no row is of; among these, and among the others, what the aims are judged by."""
    known, large = {tuple(row[key] for key in NAMED) for row in rows}, max(cell.case.side for cell in cells)

    def urgent(cell: Cell) -> bool:
        case = cell.case
        judged = case.side == large and case.requests in (1, 8) and not case.guided and cell.what == "steps"
        return cell.model == FIRST and cell.mode in ("eager", "compiled") and judged

    return sorted(cells, key=lambda cell: (cell.key in known, not urgent(cell)))


def write(path: Path, devices: dict[str, Row]) -> None:
    """Write the rows of all devices, and the page beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(devices, indent=1) + "\n")
    path.with_suffix(".md").write_text(HEAD + "".join(page(device, each) for device, each in devices.items()))


def page(device: str, measured: Row) -> str:
    """The rows of a device as a part of the page: ours beside theirs, and how many times as fast our best is."""
    rows = measured["rows"]
    found = {tuple(row[key] for key in NAMED): row.get("step_ms", row.get("ms")) for row in rows}
    cases = list(
        dict.fromkeys(
            (row["model"], row["case"])
            for row in rows
            if not row["case"].startswith("start") and row["mode"] in ("eager", "compiled")
        )
    )
    lines = ["| aim | found | reached |", "|---|---|---|"]
    lines += [
        f"| {aim} | {'' if found is None else f'{found:.3g}'} | {reached} |" for aim, found, reached in aims(rows)
    ]
    said = TINY if device == "cpu" else ""
    when = f"{measured['run']}, commit {measured.get('commit') or 'not known'}" if measured["run"] else "not known"
    lines = [PART.format(**measured | {"device": device}, said=said, when=when, aims="\n".join(lines))]
    for model, case in cases:
        times = [found.get((model, engine, mode, case)) for engine, mode in COLUMNS]
        ours, theirs = ([each for each in part if each] for part in (times[:2], times[2:]))
        best = f"{min(theirs) / min(ours):.2f}" if ours and theirs else ""
        like = f"{times[2] / times[0]:.2f}" if times[0] and times[2] else ""
        of = [row for row in rows if (row["model"], row["case"]) == (model, case) and row["engine"] == "omnimuse"]
        roof, busy = (max((row.get(key, 0.0) for row in of), default=0.0) for key in ("roof_share", "device_busy"))
        shares = [f"{value:.2f}" if value else "" for value in (roof, busy)]
        told = [
            f"{each:.1f}{old}" if each else "" for each, old in zip(times, earlier(measured, model, case), strict=True)
        ]
        lines.append(f"| {' | '.join([model, case, *told, like, best, *shares])} |")
    lines += ["", *starts(rows), f"Left out by the last run: {left_out(measured)}."]
    return "\n".join(lines) + "\n"


def left_out(measured: Row) -> str:
    """What the last run had no time for, if it is recorded when that was."""
    return ("; ".join(measured["left_out"]) or "nothing") if measured["run"] else "not known"


COLUMNS = (("omnimuse", "eager"), ("omnimuse", "compiled"), ("diffusers", "eager"), ("diffusers", "compiled"))


def earlier(measured: Row, model: str, case: str) -> list[str]:
    """A star for each column whose figure is not of the last run."""
    runs = {tuple(row[key] for key in NAMED): row.get("run") for row in measured["rows"]}
    return ["" if runs.get((model, *column, case)) == measured.get("run") else "*" for column in COLUMNS]


def starts(rows: Sequence[Row]) -> list[str]:
    """What else was measured: starts, and modes without a counterpart."""
    lines = [
        "| model | engine | mode | | milliseconds of a step | seconds to the third step | peak GB |",
        "|" + "---|" * 7,
    ]
    for row in rows:
        if row["case"].startswith("start") or row["mode"] not in ("eager", "compiled"):
            took = [f"{row[key]:.4g}" if row.get(key) else "" for key in ("step_ms", "first_s", "peak_gb")]
            lines.append(f"| {' | '.join([row['model'], row['engine'], row['mode'], row['case'], *took])} |")
    return [*lines, ""] if len(lines) > 2 else []


def aims(rows: Sequence[Row]) -> list[tuple[str, float | None, str]]:
    """What was to be reached, what was found, None where nothing was, and: yes, no, or "not measured"."""
    found = {tuple(row[key] for key in NAMED): row for row in rows if row["model"] == FIRST}
    sides = [int(row["case"].split()[0]) for row in found.values() if row["case"][0].isdigit()]
    one, eight = (f"{max(sides, default=0)} x {count}" for count in (1, 8))

    def of(engine: str, mode: str, case: str, key: str) -> float | None:
        value: float | None = found.get((FIRST, engine, mode, case), {}).get(key)
        return value

    def best(engine: str, case: str) -> float | None:
        times = [of(engine, mode, case, "step_ms") for mode in ("eager", "compiled")]
        return min((each for each in times if each), default=None)

    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a and b else None

    shares = [of("omnimuse", mode, case, "roof_share") for mode in ("eager", "compiled") for case in (one, eight)]
    busy = of("omnimuse", "eager", one, "device_busy")
    warm = of("omnimuse", "compiled", "start warmed", "first_s")
    judged: list[tuple[str, float | None, Callable[[float], bool]]] = [
        (f"share of the roof at {one.split()[0]}, 0.9", max((s for s in shares if s), default=None),
         lambda x: x >= 0.9),
        ("diffusers' best over ours, one request, 1.1", over(best("diffusers", one), best("omnimuse", one)),
         lambda x: x >= 1.1),
        ("diffusers' best over ours, eight requests, 1.5", over(best("diffusers", eight), best("omnimuse", eight)),
         lambda x: x >= 1.5),
        ("host gap, at most 0.02", None if busy is None else 1 - busy, lambda x: x <= 0.02),
        ("start of a warmed folder over diffusers' start, both compiled, at most 0.5",
         over(warm, of("diffusers", "compiled", "start", "first_s")), lambda x: x <= 0.5),
    ]  # fmt: skip
    return [(aim, x, "not measured" if x is None else "yes" if reached(x) else "no") for aim, x, reached in judged]


HEAD = """# On a GPU

Written by `make gpu` beside its figures in gpu.json (and again by `python -m benchmarks.gpu --page`): networks of
published size with random weights in bfloat16, 6 steps, both engines as whole pipelines one after the other on the same
machine. Figures with a star are of an earlier run than the last.

Milliseconds of one step of all requests together (a case is `side x requests in flight`), of all of them from prompt
to pixels (`whole`), or of decoding. "Alike" is diffusers over omnimuse, both not compiled; "best" the best of diffusers
over our best. "Roof" is the largest share of the roof, counting all products and attention; "busy" that of the time in
which the device computed, from the first kernel of the third of 6 steps to the last of the last (of an earlier run:
from the first kernel of the request).
"""
PART = """
## {device}

torch {torch}. A product of two large bfloat16 matrices runs at {tflops:.3g} TFLOP/s: the roof. The last
run: {when}.{said}

{aims}

| model | case | omnimuse | compiled | diffusers | compiled | alike | best | roof | busy |
|---|---|---|---|---|---|---|---|---|---|"""
TINY = " **This is no GPU**: tiny networks, which show that the code runs and nothing else."


def commit() -> str:
    """Of the code that is measured, and whether it was changed, but for what this writes; "" where nobody knows."""
    git, written = ["git", "-C", str(PUBLISHED.parent.parent)], (":(exclude)docs/gpu.json", ":(exclude)docs/gpu.md")
    try:
        known = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", ".", *written], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    name = known.stdout.strip()
    return f"{name}-dirty" if name and changed.stdout.strip() else name


def machine(device: torch.device) -> Row:
    """What the device is, and the rates that it reaches on a large product and a large copy."""
    if device.type == "cpu":
        return {"device": "cpu", "torch": torch.__version__, "memory_gb": 0.0, "tflops": product_rate(device, 512)}
    name, total = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    rates = {"tflops": product_rate(device, 8192), "tb_per_s": memory_rate(device)}
    return {"device": name, "torch": torch.__version__, "memory_gb": total / 1e9} | rates


def figures(
    cells: Sequence[Cell],
    folder: Path,
    device: torch.device,
    facts: Row,
    budget: Budget,
    rows: Sequence[Row],
    *,
    tiny: bool,
) -> Iterator[Row]:
    """The rows of all cells that the budget allows; neighbours of one engine share it, which is alone on the device."""
    flops = {(row["model"], row["case"]): row["flops"] for row in rows if "flops" in row}
    paths, started = dict[str, Path](), set[tuple[str, str, str]]()
    for (name, kind, mode), of in itertools.groupby(cells, lambda cell: (cell.model, cell.kind, cell.mode)):
        named, model, group = (
            {"model": name, "engine": kind.name, "mode": mode, "run": facts["run"]},
            MODELS[name],
            [*of],
        )
        if not budget.allows((name, kind.name, mode, "start"), 60 if mode == "compiled" else 15):
            continue
        if name not in paths:
            paths[name] = model.build(folder / name) if tiny else published(folder / name, model)
        first = group[0].case
        new = (name, kind.name, mode) not in started  # what starts again in this run is not cold
        started.add((name, kind.name, mode))
        for again in (False, True) if new and mode == "compiled" and kind is Ours else (False,):
            began = budget.clock()
            engine = kind(model, paths[name], device, mode)
            try:
                engine.steps(replace(first, requests=1, steps=3))
                took = budget.clock() - began
                if new:
                    yield named | {"case": "start warmed" if again else "start", "first_s": took, "seconds": took}
                for cell in () if again else group:
                    began = budget.clock()
                    if budget.allows(cell.key, 6):
                        if cell.what == "steps":
                            row = step(engine, cell.case, mode, facts, flops, name)
                        else:
                            row = taking(engine.decode if cell.what == "decode" else engine.whole, cell.case)
                        yield named | row | {"case": cell.name, "seconds": budget.clock() - began}
            finally:
                engine.close()
            torch.compiler.reset()  # what starts again finds what is on the disk, and nothing else


def step(
    engine: Ours | Theirs, case: Case, mode: str, facts: Row, flops: dict[tuple[str, str], float], model: str
) -> Row:
    """Seconds of one step of all requests together, peak memory, and for ours the share in which the device worked."""
    peak = forget_peak(engine.device)
    engine.steps(replace(case, steps=3))  # compiles, fills tables
    seconds = engine.steps(case)
    row: Row = {"step_ms": seconds * 1e3, "peak_gb": peak()}
    if isinstance(engine, Ours):
        # Counting is a mode in which torch compiles nothing, and what it met then stays as it is.
        key = (model, str(case))
        if key not in flops and mode == "eager":
            flops[key] = engine.operations(case)
        if key in flops:
            row |= {"flops": flops[key], "roof_share": flops[key] / seconds / (facts["tflops"] * 1e12)}
        if engine.device.type == "cuda" and case.requests == 1:
            row |= {"device_busy": busy_share(lambda seen: engine.steps(case, seen))}
    return row


def taking(work: Callable[[Case], float], case: Case) -> Row:
    """Its seconds when it has been done before."""
    times = [work(case) for _ in range(3)]
    return {"ms": statistics.median(times[1:]) * 1e3}


def forget_peak(device: torch.device) -> Any:
    """Peak memory of the device from now on, in GB, when asked; 0 on a CPU."""
    if device.type != "cuda":
        return lambda: 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device) / 1e9


if __name__ == "__main__":
    main()
