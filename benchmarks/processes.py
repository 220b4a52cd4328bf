"""Whole processes of the race: each engine in one of its own, its peak memory, and its start from command to file.

`python -m benchmarks.processes ENGINE ...` is what runs in the child: it answers one line of JSON for each it reads.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

from benchmarks.checkpoints import RACES, Race
from benchmarks.contestants import CONTESTANTS, Contestant, Ours, Wish

DIFFUSERS_SCRIPT = """
import sys, torch
from diffusers import {reference}
pipe = {reference}.from_pretrained(sys.argv[1], dtype=torch.{dtype})
pipe.set_progress_bar_config(disable=True)
pipe({prompt!r}, num_inference_steps={steps}, height={height}, width={width}, {guided_by}={guidance},
     generator=torch.Generator().manual_seed(0)).images[0].save(sys.argv[2])
"""


class Apart:
    """A contestant in a process of its own, so that neither engine's settings of this process touch the other."""

    def __init__(self, engine: str, race: Race, folder: Path, dtype: str, compiled: bool = False) -> None:
        self.name = f"{engine} compiled" if compiled else engine
        job = {"family": race.family, "folder": str(folder), "dtype": dtype, "compiled": compiled}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processes", engine, json.dumps(job)]
        self._child = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
        self._ask("peak")  # loaded, when it answers

    def draw(self, wishes: Sequence[Wish]) -> list[float]:
        """Seconds from the call until each wish was finished; all wishes arrive at once."""
        return self._ask("draw", [asdict(wish) for wish in wishes])

    def overtake(self, long: Wish, short: Wish) -> float:
        """Seconds of a short wish that arrives while a long one is drawn; ours only."""
        return self._ask("overtake", [asdict(long), asdict(short)])

    def operations(self, wish: Wish) -> float:
        """Operations of a wish; ours only."""
        return self._ask("operations", [asdict(wish)])

    def peak(self) -> float:
        """Peak resident memory so far, in MiB."""
        return self._ask("peak")

    def close(self) -> None:
        """End the process."""
        self._child.communicate()

    def _ask(self, verb: str, wishes: Sequence[dict[str, Any]] = ()) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(json.dumps([verb, list(wishes)]), file=self._child.stdin, flush=True)
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} died; run `{' '.join(map(str, self._child.args))}` to see why")  # type: ignore[arg-type]
        return json.loads(answer)


def peak_memory(race: Race, folder: Path, dtype: str, wish: Wish) -> dict[str, Any]:
    """Peak resident memory of one process that draws one request, in MiB."""
    row: dict[str, Any] = {"case": "peak memory", "unit": "MiB"}
    for name in CONTESTANTS:
        contestant = Apart(name, race, folder, dtype)
        contestant.draw([wish])
        row[name] = contestant.peak()
        contestant.close()
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
    """Load the engine, then do what every line says and answer in a line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    contestant: Contestant = CONTESTANTS[name](RACES[job["family"]], Path(job["folder"]), job["dtype"], job["compiled"])
    for line in sys.stdin:
        verb, given = json.loads(line)
        wishes = [Wish(**wish) for wish in given]
        if verb == "peak":
            answer: Any = own_peak()
        elif verb == "draw":
            answer = contestant.draw(wishes)
        else:
            assert isinstance(contestant, Ours), f"{name} cannot {verb}"
            answer = contestant.overtake(*wishes) if verb == "overtake" else contestant.operations(*wishes)
        print(json.dumps(answer), file=answers, flush=True)
    contestant.close()


def own_peak() -> float:
    """Peak resident memory of this process in MiB; `getrusage` would count what its parent had when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


if __name__ == "__main__":
    child(sys.argv[1], json.loads(sys.argv[2]))
