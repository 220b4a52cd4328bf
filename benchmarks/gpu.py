"""Everything that an accelerator shows, in minutes: `make gpu`, or `python -m benchmarks.gpu`.

Networks of published size with random weights, drawn on the device, beside diffusers eager and with its own compile:
seconds of a step, share of the measured matrix rate, host gap, memory, decoding, offload. Both engines run whole
pipelines, one after the other on the same machine; ratios above 1 mean that we are faster. Prints a table, writes
gpu.json and renders docs/gpu.md. Without an accelerator the same code runs the tiny checkpoints, and says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.published import MODELS, Model, published
from benchmarks.steps import Case, Ours, Theirs, busy_share, memory_rate, product_rate

Row = dict[str, Any]
SIDES = (512, 1024)
LIMIT = 8 * 60.0
NAMED = ("model", "engine", "mode", "case")
"""What tells one row from another."""


@dataclass
class Budget:
    """Minutes are few: what does not fit any more is left out, and said."""

    seconds: float
    began: float
    left_out: list[str]

    def allows(self, what: str, seconds: float) -> bool:
        """Whether `what`, which takes about so long, still fits."""
        if time.perf_counter() - self.began + seconds < self.seconds:
            return True
        self.left_out.append(what)
        return False


def main() -> None:
    """Measure the chosen models and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(MODELS), help="default: all that fit the device")
    parser.add_argument("--side", type=int, action="append", help=f"of pictures (default: {SIDES})")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8], help="in flight (default: 1 2 4 8)")
    parser.add_argument("--steps", type=int, default=6, help="of every request; the first two warm up (default: 6)")
    parser.add_argument("--mode", nargs="+", default=["eager", "compiled"], choices=Ours.modes, help="of both engines")
    parser.add_argument("--tiny", action="store_true", help="the tiny checkpoints, on any device")
    parser.add_argument("--only", nargs="+", default=["steps", "decode", "offload", "cache"], help="parts to measure")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="leave out what does not fit (default: 480)")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="rows of the same device there are kept")
    parser.add_argument("--page", type=Path, help="write the rows in --json as this page, and measure nothing")
    args = parser.parse_args()
    if args.page is not None:
        args.page.write_text(page(json.loads(args.json.read_text())))
        return
    on = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if on else torch.device("cpu")
    assert device is not None
    tiny = args.tiny or not on
    budget = Budget(args.seconds, time.perf_counter(), [])
    facts = machine(device)
    print(json.dumps(facts), flush=True)
    rows = kept(args.json, facts["device"])
    for name in args.model or list(MODELS):
        if not tiny and MODELS[name].gigabytes * 1.3 > facts["memory_gb"]:
            budget.left_out.append(f"{name}: {MODELS[name].gigabytes} GB of weights do not fit")
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = MODELS[name]
            path = model.build(Path(folder) / "tiny") if tiny else published(Path(folder) / "model", model)
            for row in measure(model, path, device, facts, budget, args):
                row = {"model": name} | row
                rows = [old for old in rows if any(old[key] != row[key] for key in NAMED)] + [row]
                print(json.dumps(row), flush=True)
                args.json.write_text(json.dumps(facts | {"rows": rows, "left_out": budget.left_out}, indent=1) + "\n")
    print("left out:", budget.left_out)


def kept(path: Path, device: str) -> list[Row]:
    """The rows that were measured before on a device of this name."""
    before = json.loads(path.read_text()) if path.exists() else {}
    return before["rows"] if before.get("device") == device else []


def page(measured: Row) -> str:
    """The rows as a page: ours beside theirs, and how many times as fast our best is as theirs."""
    rows = measured["rows"]
    found = {tuple(row[key] for key in NAMED): row.get("step_ms", row.get("ms")) for row in rows}
    cases = list(dict.fromkeys((row["model"], row["case"]) for row in rows if row["case"] != "start"))
    columns = [("omnimuse", "eager"), ("omnimuse", "compiled"), ("diffusers", "eager"), ("diffusers", "compiled")]
    lines = [HEAD.format(**measured)]
    for model, case in cases:
        times = [found.get((model, engine, mode, case)) for engine, mode in columns]
        ours, theirs = ([each for each in part if each] for part in (times[:2], times[2:]))
        best = f"{min(theirs) / min(ours):.2f}" if ours and theirs else ""
        like = f"{times[2] / times[0]:.2f}" if times[0] and times[2] else ""
        of = [row for row in rows if (row["model"], row["case"]) == (model, case) and row["engine"] == "omnimuse"]
        roof, busy = (max((row.get(key, 0.0) for row in of), default=0.0) for key in ("roof_share", "device_busy"))
        shares = [f"{value:.2f}" if value else "" for value in (roof, busy)]
        cells = [model, case, *("" if each is None else f"{each:.1f}" for each in times), like, best, *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


HEAD = """# On a GPU

Written by `python -m benchmarks.gpu --page docs/gpu.md` from gpu.json, which `make gpu` measures: networks of published
size with random weights in bfloat16, 6 steps, both engines as whole pipelines one after the other on the same machine.
Cases that one run left out are of another run on a device of the same name.

Device: {device}, torch {torch}. A product of two large bfloat16 matrices runs at {tflops:.3g} TFLOP/s: the roof.

Milliseconds of one step of all requests together (a case is `side x requests in flight`), or of decoding. "Alike" is
diffusers over omnimuse, both not compiled; "best" the best of diffusers over our best. "Roof" is the largest share of
the roof, counting all products and attention; "busy" that of the time in which the device computed, from the first
kernel of a request of 6 steps to its last.

| model | case | omnimuse | compiled | diffusers | compiled | alike | best | roof | busy |
|---|---|---|---|---|---|---|---|---|---|"""


def machine(device: torch.device) -> Row:
    """What the device is, and the rates that it reaches on a large product and a large copy."""
    if device.type == "cpu":
        return {"device": "cpu", "torch": torch.__version__, "memory_gb": 0.0, "tflops": product_rate(device, 512)}
    name, total = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    rates = {"tflops": product_rate(device, 8192), "tb_per_s": memory_rate(device)}
    return {"device": name, "torch": torch.__version__, "memory_gb": total / 1e9} | rates


def measure(
    model: Model, path: Path, device: torch.device, facts: Row, budget: Budget, args: argparse.Namespace
) -> Iterator[Row]:
    """All cases of one model: first ours, then theirs, each alone on the device."""
    tiny = device.type == "cpu" or args.tiny
    sides = [32] if tiny else args.side or SIDES
    cases = [
        Case(side, count, guided, args.steps)
        for side in sides
        for count in args.requests
        for guided in ((False, True) if count in (1, 8) else (False,))
    ]
    flops: dict[str, float] = {}
    for mode in args.mode:
        for kind in (kind for kind in (Ours, Theirs) if mode in kind.modes):
            what = f"{kind.name} {mode} {model.name}"
            if not budget.allows(what, 15 if mode == "eager" else 60):
                continue
            began = time.perf_counter()
            engine = kind(model, path, device, mode)
            now = time.perf_counter()
            yield {"engine": kind.name, "mode": mode, "case": "start", "s": now - began, "at": now - budget.began}
            try:
                for case in cases:
                    if mode == "compiled" and (case.side != max(sides) or case.requests not in (1, 8)):
                        continue
                    if budget.allows(f"{what} {case}", 6):
                        yield {"engine": kind.name, "mode": mode, **step(engine, case, mode, facts, flops)}
                if "decode" in args.only and mode == "eager":
                    yield {"engine": kind.name, "mode": mode, **decode(engine, Case(max(sides), 1, False, 2))}
            finally:
                engine.close()


def step(engine: Ours | Theirs, case: Case, mode: str, facts: Row, flops: dict[str, float]) -> Row:
    """Seconds of one step of all requests together, peak memory, and for ours the share in which the device worked."""
    peak = forget_peak(engine.device)
    engine.steps(replace(case, steps=3))  # compiles, fills tables
    seconds = engine.steps(case)
    row: Row = {"case": str(case), "step_ms": seconds * 1e3, "peak_gb": peak()}
    if isinstance(engine, Ours):
        # Counting is a mode in which torch compiles nothing, and what it met then stays as it is.
        if str(case) not in flops and mode != "compiled":
            flops[str(case)] = engine.operations(case)
        if str(case) in flops:
            row |= {"roof_share": flops[str(case)] / seconds / (facts["tflops"] * 1e12)}
        if engine.device.type == "cuda" and case.requests == 1:
            row |= {"device_busy": busy_share(lambda: engine.steps(case))}
    return row


def decode(engine: Ours | Theirs, case: Case) -> Row:
    """Seconds from latents to pixels."""
    times = [engine.decode(case) for _ in range(3)]
    return {"case": f"decode {case.side}", "ms": statistics.median(times[1:]) * 1e3}


def forget_peak(device: torch.device) -> Any:
    """Peak memory of the device from now on, in GB, when asked; 0 on a CPU."""
    if device.type != "cuda":
        return lambda: 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device) / 1e9


if __name__ == "__main__":
    main()
