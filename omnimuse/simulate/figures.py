"""What a run of the simulator, or a load on a server, came to: figures, and the number of replicas that is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from omnimuse.core.errors import ConfigError
from omnimuse.simulate.fleet import Outcome, Run

Figures = dict[str, Any]
MOST_REPLICAS = 65536


def spread(values: Sequence[float]) -> Figures:
    """Count, p50, p90, p99 and maximum; percentiles are by nearest rank, so each is a value that occurred."""
    ranked = sorted(values)
    figures: Figures = {"count": len(ranked)}
    for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        figures[name] = ranked[math.ceil(part * len(ranked)) - 1] if ranked else None
    return figures


def summarize(run: Run) -> Figures:
    """The figures of one run, in seconds; `within` is the share of all requests that were served in time."""
    outcomes, window = run.outcomes, max((each.ended for each in run.outcomes), default=0.0)
    good = [each for each in outcomes if each.end == "ok"]
    within = [each for each in outcomes if each.within]
    names = sorted({each.arrival.kind for each in outcomes})
    return {
        "policy": run.plan.policy,
        "replicas": run.plan.scale.least,
        "max_replicas": run.plan.scale.most,
        "most_replicas": run.most,
        "replica_seconds": run.there,
        "ranks": run.plan.ranks,
        "seconds": window,
        "sent": len(outcomes),
        "ok": len(good),
        **{end: sum(each.end == end for each in outcomes) for end in ("refused", "late", "lost")},
        "failed_replicas": run.failed,
        "within": len(within) / len(outcomes) if outcomes else 0.0,
        "within_of": {name: _within([each for each in outcomes if each.arrival.kind == name]) for name in names},
        "throughput": len(good) / window if window else 0.0,
        "goodput": len(within) / window if window else 0.0,
        "utilisation": run.busy / run.there if run.there else 0.0,
        "latency": spread([each.latency for each in good]),
        "latency_of": {name: spread([each.latency for each in good if each.arrival.kind == name]) for name in names},
        "deciding": {
            "admission": _decisions(run.admitting),
            "routing": _decisions(run.routing),
            "scheduler": _decisions(run.scheduling),
        },
    }


def _within(outcomes: Sequence[Outcome]) -> float:
    return sum(each.within for each in outcomes) / len(outcomes)


def _decisions(seconds: Sequence[float]) -> Figures:
    """How long decisions took, in seconds of the real clock, and how many of them one core can make in one."""
    mean = sum(seconds) / len(seconds) if seconds else None
    return {**spread(seconds), "mean": mean, "a_second": 1 / mean if mean else None}


def enough(within: Callable[[int], float], wanted: float, most: int = MOST_REPLICAS) -> int:
    """The least number of replicas with which a share of `wanted` is served in time; ConfigError if none up to `most`.

    More replicas serve more, so it is looked for by halves between a number that is too small and twice that.
    """
    high = 1
    while within(high) < wanted:
        if high >= most:
            raise ConfigError(
                f"not even {most} replicas serve {wanted:.1%} in time; allow more time (--target), or faster ranks"
            )
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) >= wanted else (middle, high)
    return high
