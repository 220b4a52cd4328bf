"""Measure a running server under load. `serve` asks any OpenAI-compatible server for pictures or, with --task, for
pictures that change one (edits), videos, sounds, answers in a chat or speech.

The load is open (--rate: requests come at random moments, however slow the server is) or closed (--concurrency: each
client asks again when it has its picture; one that got none first waits for Retry-After, or 1 s). What is printed (of
what --task asks for where it says pictures):
  latency        from the moment a request was due (open) or sent (closed) to the last byte of its answer, connecting
                 included; pictures only. p99 is the least of them that 99 % do not exceed. A video is a job, which is
                 asked for every 50 ms, or with --stream told by events; it ends with its file, and is then removed
  throughput     pictures a second, from the first request due at 0 s to the last answer
  goodput        the same, counting only pictures within --slo (all of them if it is not given)
  first preview  like latency, to the first partial picture, or piece, of a stream (--stream)
  in STAGE       how long each stage took, as the server tells it (`queue`: until a worker had it); with --blocks, each
                 of its steps and each block of a network, too, and the most that was held when one was done
  refused        answers 429, and 503 where no work had begun; their times are from sending to the last byte
  failed         every other answer without a picture, a broken connection, and --timeout
  wasted         work that was taken on but failed or came after --slo: its part of all that was taken on, which what
                 is refused, wrong (4xx) or unreached is not, weighed by megapixels x frames x steps
  sent late      how long after they were due requests left this machine; if that is much, it measures itself

examples:
  omnimuse bench serve --concurrency 4 --requests 100
  omnimuse bench serve --url http://127.0.0.1:9000 --rate 2 --duration 60 --slo 5 --json load.json
  omnimuse bench serve --mix "128x128@10:3,64x64@4:1" --stream --duration 30
  omnimuse bench serve --task chat --tokens 100 --stream --concurrency 8 --requests 100
  omnimuse bench serve --task videos --mix 64x64x9@4 --image made --requests 8 --blocks
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import mimetypes
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from omnimuse.cli.bench_asks import MADE, TASKS, Task, data_url
from omnimuse.cli.bench_http import Target
from omnimuse.cli.bench_serve import Entry, Load, Outcome, Watch, find_model, run_load
from omnimuse.cli.plot import KINDS, check_place, plot
from omnimuse.cli.table import columns
from omnimuse.cli.terms import read_deadline
from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import RequestError, reason
from omnimuse.simulate.figures import Figures, spread

LATE = 0.05
"""Seconds; a generator that is later than this is said to be."""
PARTS = ("p50", "p90", "p99", "max")
SHOWN = 3
"""Messages of one error code that are printed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse bench`."""
    parser.add_argument("what", choices=("serve",), metavar="serve", help="what to measure: a server, by its address")
    where = parser.add_argument_group("the server")
    where.add_argument("--url", default="http://127.0.0.1:8000", help="its address (default: http://127.0.0.1:8000)")
    where.add_argument("--api-key", default="", metavar="KEY", help="sent as Authorization: Bearer KEY")
    where.add_argument("--model", metavar="NAME", help="which model to ask for (default: the first it lists)")
    load = parser.add_argument_group("the load (times in seconds)")
    load.add_argument("--rate", type=float, metavar="R", help="open loop: requests a second, at random moments")
    load.add_argument("--concurrency", type=int, metavar="C", help="closed loop: how many clients (default: 1)")
    load.add_argument("--duration", type=float, metavar="S", help="send for so long (default: 30 without --requests)")
    load.add_argument("--requests", type=int, metavar="N", help="send at most so many")
    load.add_argument(
        "--mix",
        default="auto",
        metavar="KINDS",
        help="what to ask for: SIZE[@STEPS][:WEIGHT], several with commas; auto is the server's own size, and that of"
        " a video may have frames: 64x64x9",
    )
    load.add_argument("--steps", type=int, metavar="N", help="steps of each picture, where --mix says none")
    load.add_argument("--task", choices=TASKS, default="pictures", help="what is asked for (default: pictures)")
    load.add_argument(
        "--image",
        metavar="FILE",
        help="what edits change (default: made) and videos begin with; made draws stripes, others for every prompt",
    )
    load.add_argument("--video", metavar="FILE", help="what videos start from")
    load.add_argument("--tokens", type=int, metavar="N", help="of each answer or speech, at most")
    load.add_argument("--stream", action="store_true", help="ask for 3 previews of each picture, or for pieces")
    load.add_argument("--timeout", type=float, default=600, metavar="S", help="a client waits so long (default: 600)")
    load.add_argument(
        "--deadline", metavar="S|CLASS", help="say so in every request: of no use later, in seconds or by a name (ours)"
    )
    load.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments and the mix (default: 0)")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--slo", type=float, metavar="S", help="a picture that takes longer is of no use")
    shown.add_argument(
        "--blocks",
        action="store_true",
        help="ask what every block and every step takes, and show it (ours)",
    )
    shown.add_argument("--json", type=Path, metavar="FILE", help="also write the figures and every request to FILE")
    shown.add_argument("--plot", type=Path, metavar="FILE", help="draw the times of each answer, as a picture")
    shown.add_argument("--overwrite", action="store_true", help="replace the files of --json and --plot")


def run(args: argparse.Namespace) -> int:
    """Send the load, print the figures; 1 if there was not a single good answer."""
    load, target = read_load(args), Target.read(args.url, args.api_key)
    if args.slo is not None:
        _above_zero("--slo", args.slo)
    if args.json is not None:
        check_place("json", args.json, (".json",), args.overwrite)
    if args.plot is not None:
        check_place("plot", args.plot, KINDS, args.overwrite)
    outcomes, load = asyncio.run(measure(target, load, sys.stderr))
    figures = summarize(outcomes, args.slo)
    figures |= {"url": str(target), "model": load.model, "load": describe(load)}
    print(text(figures))
    if args.json is not None:
        write(args.json, figures, outcomes, replace=args.overwrite)
    if args.plot is not None:
        plot(drawn(outcomes), args.plot, args.overwrite, "request")
    return 0 if figures["ok"] else 1


async def measure(target: Target, load: Load, stderr: TextIO) -> tuple[list[Outcome], Load]:
    """Every outcome in the order of ending, and `load` with the model that was asked for."""
    first = await find_model(target)
    load = replace(load, model=load.model or first)
    outcomes: list[Outcome] = []
    await run_load(target, load, counting(outcomes, stderr))
    if stderr.isatty():
        print("\r\033[K", end="", file=stderr)
    return outcomes, load


def counting(outcomes: list[Outcome], stderr: TextIO) -> Watch:
    """Keeps the outcomes; on a terminal, says about once a second how many there are."""
    said = 0.0

    def watch(outcome: Outcome) -> None:
        nonlocal said
        outcomes.append(outcome)
        if stderr.isatty() and outcome.ended >= said + 1:
            said = outcome.ended
            print(f"\r\033[K{said:.0f} s: {len(outcomes)} answers", end="", file=stderr, flush=True)

    return watch


# -- what is asked ---------------------------------------------------------------------------------------------------


def read_load(args: argparse.Namespace) -> Load:
    """The load that the options ask for; RequestError where they make no sense."""
    if args.rate is not None and args.concurrency is not None:
        raise RequestError("--rate is an open loop and --concurrency a closed one; give one of them", "rate")
    options = {"--rate": args.rate, "--concurrency": args.concurrency, "--duration": args.duration}
    deadline = read_deadline(args.deadline)
    if not isinstance(deadline, str):
        options["--deadline"] = deadline
    options |= {"--requests": args.requests, "--timeout": args.timeout, "--steps": args.steps, "--tokens": args.tokens}
    for name, value in options.items():
        if value is not None:
            _above_zero(name, value)
    task = TASKS[args.task]
    for name, given in (("mix", args.mix != "auto"), ("steps", args.steps), ("tokens", args.tokens)):
        if given and name not in task.takes:
            raise RequestError(f"--{name} is of no use with --task {args.task}, which knows {_known(task)}", name)
    if task.file and args.blocks and not args.stream:
        raise RequestError("--blocks needs --stream here: a sound by itself cannot tell what it took", "blocks")
    mix = read_mix(args.mix, args.steps)
    if not task.kept and (wrong := next((entry.name for entry in mix if entry.frames), None)):
        raise RequestError(f"--mix {wrong} has frames, which --task videos alone asks for", "mix")
    return Load(
        mix=mix,
        rate=args.rate,
        concurrency=args.concurrency or 1,
        seconds=30.0 if args.duration is None and args.requests is None else args.duration,
        requests=args.requests,
        stream=args.stream,
        timeout=args.timeout,
        seed=args.seed,
        model=args.model or "",
        deadline=deadline,
        blocks=args.blocks,
        task=args.task,
        tokens=args.tokens,
        shown=read_shown(args, task),
    )


def _known(task: Task) -> str:
    return ", ".join(f"--{name}" for name in (*sorted(task.takes), *task.shown)) or "none of these"


def read_shown(args: argparse.Namespace, task: Task) -> dict[str, str]:
    """What comes with every prompt, by medium: an address that has the file itself, or `MADE`."""
    given = {"image": args.image, "video": args.video}
    said = {medium: file for medium, file in given.items() if file is not None}
    if others := [medium for medium in said if medium not in task.shown]:
        raise RequestError(f"--{others[0]} is of no use with --task {args.task}, which knows {_known(task)}", others[0])
    if task.needs and not said:
        said = {next(iter(task.shown)): task.needs}
    return {medium: file if (medium, file) == ("image", MADE) else _file(medium, file) for medium, file in said.items()}


ENDINGS = {".webp": "image/webp", ".mkv": "video/x-matroska", ".ts": "video/mp2t"}
"""What systems do not know of, or take for something else."""


def _file(medium: str, file: str) -> str:
    kind = ENDINGS.get(Path(file).suffix.lower()) or mimetypes.guess_type(file)[0] or ""
    if not kind.startswith(f"{medium}/"):
        raise RequestError(f"--{medium} {file} does not end as a file of that kind does", medium)
    try:
        return data_url(Path(file).read_bytes(), kind)
    except OSError as error:
        raise RequestError(f"--{medium} {file} cannot be read: {reason(error)}", medium) from None


_KIND = re.compile(
    r"(?:auto|([1-9]\d{0,4})x([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?)(?:@([1-9]\d{0,4}))?(?::(\d{1,9}(?:\.\d{1,9})?))?"
)
"""One part of a mix: width, height, frames, steps and weight."""


def read_mix(words: str, otherwise: int | None = None) -> tuple[Entry, ...]:
    """`128x128@10:3,auto` -> three of four requests are 128x128 in 10 steps, one is as the server likes, or in as many
    steps as `otherwise` says.
    """
    entries = []
    for word in words.split(","):
        match = _KIND.fullmatch(word.strip())
        if match is None or (match[5] is not None and float(match[5]) == 0):
            raise RequestError(
                f"--mix {word.strip()!r} is not SIZE[@STEPS][:WEIGHT] with numbers above 0; "
                "write it like 128x128@10:3 or auto",
                "mix",
            )
        width, height, frames, steps = (None if part is None else int(part) for part in match.group(1, 2, 3, 4))
        name = word.strip().split(":")[0]
        entries.append(Entry(name, width, height, steps or otherwise, float(match[5] or 1), frames))
    if len({entry.name for entry in entries}) < len(entries):
        raise RequestError(f"--mix {words} names one kind twice; add their weights", "mix")
    return tuple(entries)


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise RequestError(f"{name} {value:g} is not allowed; use a number above 0", name.removeprefix("--"))


def describe(load: Load) -> Figures:
    """The load, for the record."""
    pace = {"concurrency": load.concurrency} if load.rate is None else {"rate": load.rate}
    return {
        "kind": "closed" if load.rate is None else "open",
        "task": load.task,
        **pace,
        "seconds": load.seconds,
        "requests": load.requests,
        "mix": {entry.name: entry.weight for entry in load.mix},
        "tokens": load.tokens,
        "shown": sorted(load.shown),
        "stream": load.stream,
        "timeout": load.timeout,
        "deadline": load.deadline,
        "seed": load.seed,
    }


# -- what came of it -------------------------------------------------------------------------------------------------


def summarize(outcomes: Sequence[Outcome], slo: float | None) -> Figures:
    """The figures as the help defines them; seconds, and None for the percentiles of nothing."""
    good = [o for o in outcomes if o.kind == "ok"]
    within = [o for o in good if slo is None or o.latency <= slo]
    refused = [o for o in outcomes if o.kind == "rejected"]
    window = max((o.ended for o in outcomes), default=0.0)
    names = sorted({o.entry.name for o in outcomes})
    return {
        "seconds": window,
        "slo": slo,
        "sent": len(outcomes),
        "ok": len(good),
        "within_slo": len(within),
        "rejected": len(refused),
        "failed": len(outcomes) - len(good) - len(refused),
        "throughput": len(good) / window if window else 0.0,
        "goodput": len(within) / window if window else 0.0,
        "latency": spread([o.latency for o in good]),
        "latency_of": {name: spread([o.latency for o in good if o.entry.name == name]) for name in names},
        "first_preview": spread([o.previewed - o.due for o in good if o.previewed is not None]),
        "rejection": spread([o.ended - o.sent for o in refused]),
        "stages": _spreads([o.stages for o in good]),
        "steps": _spreads_of_all([o.steps for o in good]),
        "blocks": _spreads([o.blocks for o in good]),
        "bytes": _most([o.bytes_ for o in good]),
        "held_mb": max((o.held for o in good if o.held is not None), default=None),
        "sent_late": spread([o.sent - o.due for o in outcomes]),
        "errors": dict(Counter(o.code for o in outcomes if o.code).most_common()),
        "messages": _messages(outcomes),
        "wasted": _wasted([o for o in outcomes if o.begun], within),
    }


def _messages(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """By code, what the server said of it, each message once and how often, the most frequent first."""
    found: dict[str, dict[str, int]] = {}
    for (code, message), times in Counter((o.code, o.message) for o in outcomes if o.message).most_common():
        found.setdefault(code, {})[message] = times
    return found


def _spreads(told: Sequence[Mapping[str, float]]) -> Figures:
    """What answers tell of all that they tell of, in the order of the first that does."""
    names = dict.fromkeys(name for each in told for name in each)
    return {name: spread([each[name] for each in told if name in each]) for name in names}


def _spreads_of_all(told: Sequence[Mapping[str, Sequence[float]]]) -> Figures:
    """As `_spreads`, of what each answer tells several of."""
    names = dict.fromkeys(name for each in told for name in each)
    return {name: spread([one for each in told for one in each.get(name, ())]) for name in names}


def _most(told: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in told for name in each)
    return {name: max(max(each[name]) for each in told if name in each) for name in names}


def drawn(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `plot` draws of good answers: a bar for each, and for every block what it took of the requests in all."""
    good = [o for o in outcomes if o.kind == "ok"]
    rows: list[dict[str, Any]] = [
        {"prompt": f"{o.entry.name}, due at {o.due:.3g} s", "timings": o.stages, "steps": o.steps, "bytes": o.bytes_}
        for o in good
    ]
    names = dict.fromkeys(name for o in good for name in o.blocks)
    blocks = {name: [o.blocks[name] for o in good if name in o.blocks] for name in names}
    return {"seconds": {}, "results": [*(row | {"blocks": {}} for row in rows), {"timings": {}, "blocks": blocks}]}


def _wasted(accepted: Sequence[Outcome], within: Sequence[Outcome]) -> Figures:
    work = sum(o.entry.work for o in accepted)
    useful = sum(o.entry.work for o in within)
    return {"requests": len(accepted) - len(within), "share": 1 - useful / work if work else 0.0}


def write(path: Path, figures: Figures, outcomes: Sequence[Outcome], *, replace: bool) -> None:
    """The figures and one row for each request, in the order of ending, as one JSON object; FileExistsError if it must
    not `replace` a file.
    """
    from omnimuse.media.destination import write_whole

    rows = [
        {
            "kind": o.entry.name,
            "due": round(o.due, 6),
            "sent": round(o.sent, 6),
            "previewed": None if o.previewed is None else round(o.previewed, 6),
            "ended": round(o.ended, 6),
            "status": o.status,
            "code": o.code,
        }
        for o in outcomes
    ]
    write_whole(path, (json.dumps({**figures, "rows": rows}, indent=1) + "\n").encode(), replace=replace)


def text(figures: Figures) -> str:
    """The figures for people."""
    load, slo, wasted = figures["load"], figures["slo"], figures["wasted"]
    pace = f"{load['rate']:g} requests a second" if load["kind"] == "open" else f"concurrency {load['concurrency']}"
    things = TASKS[load["task"]].things
    within = "" if slo is None else f" within {slo:g} s"
    facts = [
        ("server", f"{figures['url']}  {figures['model']}".rstrip()),
        ("load", f"{load['kind']} loop, {pace}, {figures['seconds']:.1f} s until the last answer"),
        (
            "requests",
            f"{figures['sent']}: {figures['ok']} {things}, {figures['rejected']} refused, {figures['failed']} failed",
        ),
        ("throughput", f"{figures['throughput']:.2f} {things} a second"),
        ("goodput", f"{figures['goodput']:.2f} {things} a second{within}"),
        ("wasted", f"{wasted['share']:.1%} of the work taken on ({wasted['requests']} requests)"),
    ]
    if figures["held_mb"] is not None:
        facts.append(("memory", f"up to {told_bytes(round(figures['held_mb'] * 2**20))} held by the worker"))
    if figures["errors"]:
        facts.append(("errors", ", ".join(f"{code} {times}" for code, times in figures["errors"].items())))
        facts += [("", line) for line in _said(figures["messages"])]
    parts = [columns(facts, indent=0), columns(_table(figures), indent=0)]
    if (late := figures["sent_late"]["p99"]) is not None and late > LATE:
        parts.append(f"sent late: 1 % of the requests left {late:.2f} s late or more; this machine is too busy")
    return "\n\n".join(parts)


def _said(messages: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """What the server said of each code: the most frequent messages, and how many others there are."""
    for code, said in messages.items():
        for message, times in islice(said.items(), SHOWN):
            yield f"{code} {times}: {message}"
        if (others := len(said) - SHOWN) > 0:
            yield f"{code} {sum(list(said.values())[SHOWN:])}: {others} other messages"


def _table(figures: Figures) -> list[Sequence[str]]:
    kinds = figures["latency_of"].items()
    rows = [("latency", figures["latency"]), *((f"  {name}", one) for name, one in kinds if len(kinds) > 1)]
    for name, one in figures["stages"].items():
        rows.append((f"  in {name}", one))
        if name in figures["steps"]:
            rows.append((f"  in a step of {name}", figures["steps"][name]))
    rows += [(f"  in {name}", one) for name, one in figures["blocks"].items()]
    rows += [("first preview", figures["first_preview"]), ("refused", figures["rejection"])]
    most = {f"  in {name}": told_bytes(round(size)) for name, size in figures["bytes"].items()}
    cells = [
        [name, str(one["count"]), *(_milliseconds(one[part]) for part in PARTS), most.get(name, "")]
        for name, one in rows
        if one["count"] or name == "latency"
    ]
    return [["milliseconds", "count", *PARTS, "held" if most else ""], *cells]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
