"""When requests come, and of which kind: at random, in bursts, or as a file says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from omnimuse.core.errors import ConfigError, reason


@dataclass(frozen=True)
class Arrival:
    """A request of a kind, `at` seconds from the beginning. `target` is when its answer is wanted, in seconds after it
    came, or the name of a class; None: it is not said.
    """

    at: float
    kind: str
    tenant: str = ""
    target: float | str | None = None


@dataclass(frozen=True)
class Mix:
    """Kinds with their weights, and the seed of what is drawn at random."""

    weights: Mapping[str, float]
    seed: int = 0


def poisson(rate: float, seconds: float, mix: Mix) -> Iterator[Arrival]:
    """`rate` requests a second at random moments, for `seconds`; those of `omnimuse bench serve` with the same seed."""
    return bursts(rate, 1, seconds, mix)


def bursts(rate: float, size: int, seconds: float, mix: Mix) -> Iterator[Arrival]:
    """As many a second, but always `size` at once."""
    gaps, kinds, at = random.Random(mix.seed), _kinds(mix), 0.0
    while True:
        at += gaps.expovariate(rate / size)
        if at > seconds:
            return
        for _ in range(size):
            yield Arrival(at, next(kinds))


def _kinds(mix: Mix) -> Iterator[str]:
    draw = random.Random(f"kinds {mix.seed}")
    names, weights = list(mix.weights), list(mix.weights.values())
    while True:
        yield draw.choices(names, weights)[0]


def trace(path: Path) -> Iterator[Arrival]:
    """Those of a file of lines such as {"at": 0.5, "kind": "128x128@10", "tenant": "a", "target": 3}, in order of time.

    A target may be the name of a class of deadlines.

    Of `omnimuse bench serve --json FILE` the rows are taken, at the moments when they were due.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if text.lstrip().startswith("{\n") else None
        if isinstance(found, dict) and "rows" in found:
            rows = [{"at": row["due"], "kind": row["kind"]} for row in found["rows"]]
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        made = [Arrival(**row) for row in rows]
        return iter(sorted(made, key=lambda arrival: arrival.at))
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        why = f"it lacks {error}" if isinstance(error, LookupError) else reason(error)
        raise ConfigError(f"--trace {path} is not understood: {why}") from None
