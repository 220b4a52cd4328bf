"""Whole processes of the race: peak memory of each engine, and cold start from the command to the file.

`python -m benchmarks.processes ENGINE ...` is what runs in the child.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import RACES, Race
from benchmarks.contestants import CONTESTANTS, Wish

DIFFUSERS_SCRIPT = """
import sys, torch
from diffusers import {reference}
pipe = {reference}.from_pretrained(sys.argv[1], dtype=torch.{dtype})
pipe.set_progress_bar_config(disable=True)
pipe({prompt!r}, num_inference_steps={steps}, height={height}, width={width}, {guided_by}={guidance},
     generator=torch.Generator().manual_seed(0)).images[0].save(sys.argv[2])
"""


def peak_memory(race: Race, kind: str, folder: Path, dtype: str, wish: Wish) -> dict[str, Any]:
    """Peak resident memory of one process that draws one request, in MiB."""
    row: dict[str, Any] = {"case": "peak memory", "unit": "MiB"}
    for name in CONTESTANTS:
        job = json.dumps({"family": race.family, "folder": str(folder), "dtype": dtype, "wish": asdict(wish)})
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processes", name, job]
        row[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return row


def cold_start(race: Race, folder: Path, dtype: str, wish: Wish, rounds: int = 3) -> dict[str, Any]:
    """Seconds from the command to the file on disk, both engines alternating."""
    script = DIFFUSERS_SCRIPT.format(reference=race.reference, dtype=dtype, guided_by=race.guided_by, **asdict(wish))
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as out:
        size = f"{wish.width}x{wish.height}"
        ours = [sys.executable, "-m", "omnimuse", "generate", wish.prompt, "-m", str(folder), "--dtype", dtype]
        ours += ["--steps", str(wish.steps), "--size", size, "--seed", "0", "-o", f"{out}/a.png"]
        ours += ["--set", f"{race.guided_by}={wish.guidance}"]
        theirs = [sys.executable, "-W", "ignore", "-c", script, str(folder), f"{out}/b.png"]
        for _ in range(rounds):
            for name, command in (("omnimuse", ours), ("diffusers", theirs)):
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append(time.perf_counter() - began)
    return {"case": "cold start", "unit": "s"} | {name: statistics.median(runs) for name, runs in times.items()}


def child(name: str, job: dict[str, Any]) -> None:
    """Draw one request and print this process's peak memory in MiB."""
    contestant = CONTESTANTS[name](RACES[job["family"]], Path(job["folder"]), job["dtype"])
    contestant.draw([Wish(**job["wish"])])
    print(own_peak())


def own_peak() -> float:
    """Peak resident memory of this process in MiB; `getrusage` would count what its parent had when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


if __name__ == "__main__":
    child(sys.argv[1], json.loads(sys.argv[2]))
