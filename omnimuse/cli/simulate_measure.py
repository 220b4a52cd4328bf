"""What requests take on a running server, for the simulator's table: asked one after the other, and four at a time.

Every kind is asked for with all of its steps and with a few, so that a step's share is told from the rest. What four at
a time take of each other tells how much of the rest keeps the server busy, and what company saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import TextIO

from omnimuse.cli.bench_http import Target
from omnimuse.cli.bench_serve import Entry, Load, Outcome, find_model, run_load
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.simulate.table import Kind, Table

CROWD = 4
"""Requests that are asked for at a time, where it is company that is measured."""
LEAST = 1e-5
"""Seconds that a step takes at the least: where the clock saw nothing, it is not nothing."""


@dataclass(frozen=True)
class Asker:
    """A server, the model that is asked for there, and how many requests of each sort."""

    target: Target
    model: str
    samples: int

    async def alone(self, entry: Entry) -> float:
        """Median seconds of one request after the other; the first is not counted."""
        outcomes = await self._ask(entry, 1, self.samples + 1)
        return median(each.latency for each in outcomes[1:])

    async def crowded(self, entry: Entry) -> float:
        """Seconds that each request takes of the server's time when `CROWD` clients ask without a pause."""
        outcomes = await self._ask(entry, CROWD, CROWD * (self.samples + 1))
        ends = sorted(each.ended for each in outcomes)
        return (ends[-1] - ends[CROWD - 1]) / (len(ends) - CROWD)

    async def _ask(self, entry: Entry, clients: int, requests: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        load = Load((entry,), concurrency=clients, requests=requests, model=self.model)
        await run_load(self.target, load, outcomes.append)
        if wrong := next((each.code for each in outcomes if each.code), ""):
            raise ConfigError(f"the server at {self.target} answered {entry.name} with {wrong}; nothing was measured")
        return outcomes


async def measure(target: Target, mix: Sequence[Entry], samples: int, stderr: TextIO) -> Table:
    """The table of the kinds in `mix`, as the server at `target` serves them now."""
    asker = Asker(target, await find_model(target), samples)
    kinds, saved = dict[str, Kind](), list[float]()
    for entry in mix:
        print(f"measuring {entry.name}", file=stderr, flush=True)
        kinds[entry.name], together = await _kind(asker, entry)
        saved.append(together)
    return Table(asker.model, kinds, min(1.0, mean(saved)))


async def _kind(asker: Asker, entry: Entry) -> tuple[Kind, float]:
    """One kind, and what its steps take in company, of what they take alone."""
    if entry.width is None or entry.height is None or entry.frames or entry.steps is None or entry.steps < 2:
        raise RequestError(
            f"--mix {entry.name}: to be measured a kind needs a size and steps and no frames, such as 128x128@10", "mix"
        )
    few = replace(entry, name=f"{entry.name} in few steps", steps=max(1, entry.steps // 4))
    assert few.steps is not None
    more = entry.steps - few.steps
    whole, short = await asker.alone(entry), await asker.alone(few)
    busy, busy_short = await asker.crowded(entry), await asker.crowded(few)
    step = max(LEAST, (whole - short) / more)
    shared = max(LEAST, (busy - busy_short) / more)
    rest = max(0.0, whole - entry.steps * step)
    once = min(rest, max(0.0, busy - entry.steps * shared))
    return Kind(entry.width, entry.height, entry.steps, step, once, rest - once), shared / step
