"""Simulate a fleet of servers under load, with the real scheduler, admission and routing, and measured times of work.

What work takes is read from a table (`TABLE`, a file of JSON), which --measure writes from a running server. Printed:
  within      requests that were served in time, of all that came (all that were served, without --target)
  goodput     those, a second, until the last answer
  latency     from when a request came to its last byte
  utilisation the part of all replicas' time in which they worked
  replica-seconds  how long replicas were there, those that were being started included
  refused     by admission, at once; late: given up at their target; lost: their replica failed twice
  deciding    what a decision of admission, routing and the scheduler took this machine

examples:
  omnimuse simulate times.json --measure --mix 128x128@10,64x64@4
  omnimuse simulate times.json --rate 20 --replicas 4 --target 2
  omnimuse simulate times.json --rate 20 --target 3x --enough 0.99
  omnimuse simulate times.json --rate 20 --replicas 4 --target 3x --compare
  omnimuse simulate times.json --trace day.jsonl --replicas 1 --max-replicas 4 --target 3x
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omnimuse.cli.bench import read_mix
from omnimuse.cli.bench_http import Target as Server
from omnimuse.cli.engine import read_deadlines
from omnimuse.cli.plot import check_place
from omnimuse.cli.scale import add_scale_options, read_scale
from omnimuse.cli.table import columns
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.deadlines import Within, classes, within
from omnimuse.core.errors import ConfigError
from omnimuse.deploy.scale import Scale
from omnimuse.simulate.arrivals import Arrival, Mix, bursts, poisson, trace
from omnimuse.simulate.figures import Figures, enough, summarize
from omnimuse.simulate.fleet import Failures, Plan, simulate
from omnimuse.simulate.table import Table, read_table


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse simulate`."""
    parser.add_argument("table", type=Path, metavar="TABLE", help="what work takes, a file of JSON")
    _add_measuring(parser)
    load = parser.add_argument_group("the load")
    load.add_argument("--rate", type=float, metavar="R", help="requests a second, at random moments")
    load.add_argument("--burst", type=int, default=1, metavar="N", help="that come so many at once (default: 1)")
    load.add_argument("--trace", type=Path, metavar="FILE", help="instead: as this file says, or bench's --json")
    load.add_argument("--duration", type=float, default=600, metavar="S", help="they come for so long (default: 600)")
    load.add_argument(
        "--mix", metavar="KINDS", help="NAME[:WEIGHT] of the table's kinds, with commas (default: all alike)"
    )
    load.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn at random (default: 0)")
    fleet = parser.add_argument_group("the fleet")
    fleet.add_argument("--replicas", type=int, default=1, metavar="N", help="engines (default: 1)")
    add_scale_options(fleet)
    fleet.add_argument("--start", type=float, default=30, metavar="S", help="until one that is added is ready (30)")
    fleet.add_argument("--ranks", type=int, default=1, metavar="N", help="of each; the table says how fast they are")
    fleet.add_argument("--elastic", action="store_true", help="its ranks may be divided between two steps")
    fleet.add_argument("--max-queue", type=int, default=256, metavar="N", help="as of serve (default: 256)")
    fleet.add_argument("--max-wait", type=float, default=600, metavar="S", help="as of serve (default: 600)")
    fleet.add_argument("--fail-every", type=float, metavar="S", help="a rank fails once in so long on the average")
    fleet.add_argument("--away", type=float, default=30, metavar="S", help="and its replica for so long (default: 30)")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--target", metavar="WHEN", help="an answer is wanted in so long: seconds, times alone (3x), or a class"
    )
    asked.add_argument(
        "--deadline-class",
        action="append",
        default=[],
        metavar="NAME=WHEN",
        help="as of serve, for --target and traces",
    )
    asked.add_argument("--enough", type=float, metavar="P", help="how many replicas serve this part in time (0.99)")
    asked.add_argument("--compare", action="store_true", help="beside first in, first out, as most engines run")
    asked.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    asked.add_argument("--overwrite", action="store_true", help="replace the file that is written, if there is one")


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("measuring (writes TABLE)")
    measured.add_argument("--measure", action="store_true", help="ask a running server, and simulate nothing")
    measured.add_argument("--url", default="http://127.0.0.1:8000", help="its address (default: http://127.0.0.1:8000)")
    measured.add_argument("--api-key", default="", metavar="KEY", help="sent as Authorization: Bearer KEY")
    measured.add_argument("--samples", type=int, default=8, metavar="N", help="requests of each sort (default: 8)")


def run(args: argparse.Namespace) -> int:
    """Measure, or simulate and print."""
    if args.measure:
        return _measure(args)
    if args.json is not None:
        check_place("json", args.json, (".json",), args.overwrite)
    table = read_table(args.table)
    plan, load = read_plan(args), Load(args, table)
    if plan.scale.moves and (args.compare or args.enough is not None):
        raise ConfigError("--max-replicas is compared with fixed numbers of replicas; leave --compare and --enough out")
    if args.enough is not None:
        found = find_enough(plan, table, load, args.enough)
        print(f"replicas    {found} serve {args.enough:.1%} in time, and one less does not")
        plan = replace(plan, scale=Scale.fixed(found))
    plans = [plan, replace(plan, policy="fifo")] if args.compare else [plan]
    if plan.scale.moves:
        plans += [replace(plan, scale=Scale.fixed(count)) for count in (plan.scale.least, plan.scale.most)]
    figures = [summarize(simulate(each, table, load.arrivals())) for each in plans]
    print(text(figures))
    if args.json is not None:
        from omnimuse.media.destination import write_whole

        write_whole(args.json, (json.dumps(figures, indent=1) + "\n").encode(), replace=args.overwrite)
    return 0


def _measure(args: argparse.Namespace) -> int:
    from omnimuse.cli.simulate_measure import measure
    from omnimuse.media.destination import check_destination, write_whole

    if args.mix is None:
        raise ConfigError("--measure wants to know of what: --mix SIZE@STEPS,... as `omnimuse bench serve` takes it")
    if args.samples < 1:
        raise ConfigError(f"--samples {args.samples} is not allowed; use at least 1")
    if args.table.exists() and not args.overwrite:
        raise ConfigError(f"{args.table} is there already; choose another name, or --overwrite")
    check_destination(args.table, (args.table.suffix.lower(),))
    table = asyncio.run(measure(Server.read(args.url, args.api_key), read_mix(args.mix), args.samples, sys.stderr))
    write_whole(args.table, table.encode(), replace=args.overwrite)
    print(f"{args.table}: {', '.join(table.kinds)}; together {table.together:.2f}")
    return 0


class Load:
    """The arrivals that the options ask for; those of every call are the same."""

    def __init__(self, args: argparse.Namespace, table: Table) -> None:
        if (args.rate is None) == (args.trace is None):
            raise ConfigError("--rate R says how many come, --trace FILE which; give one of them")
        for name in ("rate", "burst", "duration", "away", "start"):
            value = getattr(args, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"--{name} {value:g} is not allowed; use a number above 0")
        self._args = args
        self._mix = Mix(read_weights(args.mix, table), args.seed)

    def arrivals(self) -> Iterator[Arrival]:
        """From the first to the last."""
        args = self._args
        if args.trace is not None:
            return trace(args.trace)
        if args.burst > 1:
            return bursts(args.rate, args.burst, args.duration, self._mix)
        return poisson(args.rate, args.duration, self._mix)


def read_weights(words: str | None, table: Table) -> dict[str, float]:
    """`128x128@10:3,64x64@4`: kinds of the table and their weights."""
    weights: dict[str, float] = {}
    for word in words.split(",") if words else table.kinds:
        name, _, weight = word.strip().partition(":")
        table.kind(name)
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < math.inf:
            raise ConfigError(f"--mix {word} is not NAME[:WEIGHT] with a weight above 0")
    return weights


def read_target(words: str | None, known: Mapping[str, Within]) -> Within:
    """`3` seconds, `3x` what a request takes alone, or the name of a class."""
    if words is None:
        return Within()
    return known[words] if words in known else within(words, "--target")


def read_plan(args: argparse.Namespace) -> Plan:
    """The fleet that the options ask for."""
    if args.fail_every is not None and not 0 < args.fail_every < math.inf:
        raise ConfigError(f"--fail-every {args.fail_every:g} is not allowed; use a number of seconds above 0")
    deadlines = read_deadlines(args.deadline_class)
    return Plan(
        read_scale(args),
        args.ranks,
        target=read_target(args.target, classes(deadlines)),
        failures=Failures(args.fail_every, args.away, args.seed),
        schedule=ScheduleConfig(max_queue=args.max_queue, deadlines=deadlines),
        max_queue=args.max_queue,
        max_wait=args.max_wait,
        start=args.start,
        elastic=args.elastic,
    )


def find_enough(plan: Plan, table: Table, load: Load, wanted: float) -> int:
    """How many replicas serve a part of `wanted` in time; ConfigError where nothing says what that is."""
    if plan.target == Within():
        raise ConfigError("--enough wants to know what is in time: --target S, or --target 3x")
    if not 0 < wanted <= 1:
        raise ConfigError(f"--enough {wanted:g} is not allowed; use a part above 0, at most 1, such as 0.99")
    return enough(
        lambda count: float(
            summarize(simulate(replace(plan, scale=Scale.fixed(count)), table, load.arrivals()))["within"]
        ),
        wanted,
    )


def text(figures: Sequence[Figures]) -> str:
    """The figures for people."""
    first = figures[0]
    names = sorted(first["within_of"])
    head = ["", "within", *names, "goodput", "p50 s", "p90 s", "p99 s", "utilisation", "refused", "late", "lost"]
    head.append("replica-seconds")
    rows = [[f"{each['policy']}, {_fleet(each)}", *_row(each, names)] for each in figures]
    facts = [
        (
            "fleet",
            f"{_fleet(first)} replicas of {first['ranks']} ranks, {first['most_replicas']} at once; "
            f"{first['failed_replicas']} failures",
        ),
        ("requests", f"{first['sent']} in {first['seconds']:.1f} s"),
        *((f"deciding, {name}", _decided(told)) for name, told in first["deciding"].items() if told["count"]),
    ]
    parts = [columns(facts, indent=0), columns([head, *rows], indent=0)]
    if len(figures) == 2 and figures[1]["within"]:
        gain = first["within"] / figures[1]["within"] - 1
        parts.append(f"{100 * gain:+.0f} % requests in time over first in, first out")
    return "\n\n".join(parts)


def _row(figures: Figures, names: Sequence[str]) -> list[str]:
    latency = figures["latency"]
    return [
        f"{figures['within']:.1%}",
        *(f"{figures['within_of'].get(name, 0.0):.1%}" for name in names),
        f"{figures['goodput']:.3g}",
        *("-" if latency[part] is None else f"{latency[part]:.3g}" for part in ("p50", "p90", "p99")),
        f"{figures['utilisation']:.1%}",
        *(str(figures[end]) for end in ("refused", "late", "lost")),
        f"{figures['replica_seconds']:.0f}",
    ]


def _fleet(figures: Figures) -> str:
    least, most = figures["replicas"], figures["max_replicas"]
    return f"{least}" if most == least else f"{least} to {most}"


def _decided(told: Figures) -> str:
    return (
        f"{1e6 * told['mean']:.0f} microseconds, p99 {1e6 * told['p99']:.0f}: {told['a_second']:.0f} a second at most"
    )
