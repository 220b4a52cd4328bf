"""Measure a model for its step caches, so that --cache auto, teacache, dbcache and magcache suit it.

It draws a few prompts without a cache, fits TeaCache's polynomial and MagCache's ratios to what is seen, tries some
choices, the presets among them, and keeps the one that runs the fewest blocks of those that change latents by no more
than --difference. What is found goes into a folder of this user, where every start finds it; a file cache.json in the
model's own folder comes first. Prompts should be like those that will be drawn, and a dozen: a few easy ones let
any choice look good, and what a model has not learnt changes at random and lets none through. Each is drawn by the same
parameters and from the same pictures, videos or sounds, which are named as for `omnimuse generate`; the first by
--seed (0), each further one by the next.

examples:
  omnimuse calibrate omnimuse/shapes
  omnimuse calibrate ./my-edit "make it night" "paint it in oil" --image street.png
  omnimuse calibrate ./my-films "a fox in the snow" "a street at night" --frames 17 --size 480x272
  omnimuse calibrate ./my-model "a fox in the snow" "a street at night" --steps 28 -o ./my-model/cache.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omnimuse.cli.engine import add_engine_options, read_config
from omnimuse.cli.generate import add_picture_options, draws_alone
from omnimuse.cli.job import Wanted, read_wanted
from omnimuse.cli.plot import check_place
from omnimuse.cli.table import columns
from omnimuse.core.caches import OFF, Fits
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.request import Ask
from omnimuse.media.destination import check_destination

if TYPE_CHECKING:
    from omnimuse.core.request import Door
    from omnimuse.engine.calibrate import Calibration, Trial

HEAD = ("choice", "blocks run", "difference")
DIFFERENCE = 0.005
"""How far latents may be from exact ones, as a part of them, the median of the prompts: what pictures of the demo model
bear by its grader (`docs/quality.md`).
"""
PROMPTS = (
    *(
        "a red circle on a blue background",
        "a green star above a white square",
        "a small blue cross inside a yellow ring",
    ),
    *("a white square to the left of a red triangle", "a large green ring below a blue star", "a yellow triangle"),
    *("a fox in the snow", "an old door", "a crowded street market at night, neon signs, rain"),
    *("a portrait of a woman with freckles, window light", "a bowl of fruit on a wooden table, oil painting"),
    "a lighthouse on a cliff, waves below, wide angle",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse calibrate`."""
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a hub id")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw (default: a dozen of ours)")
    add_picture_options(parser)
    add_engine_options(parser)
    draws_alone(parser)
    parser.add_argument(
        "--difference",
        type=float,
        default=DIFFERENCE,
        metavar="X",
        help="how far latents may be from those without a cache, as a part of them, the median of the prompts "
        f"(default: {DIFFERENCE})",
    )
    parser.add_argument(
        "-o", "--output", dest="place", type=Path, metavar="FILE", help="write here, and nowhere else: a *.json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of -o, if there is one")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(args: argparse.Namespace) -> int:
    """Draw, fit, try, write."""
    if not 0 < args.difference < float("inf"):
        raise RequestError(f"--difference {args.difference} is not allowed; use a number above 0", "difference")
    config = read_config(args)
    if config.cache != OFF:
        raise ConfigError(f"--cache {config.cache} chooses what is to be found out; leave it out")
    if config.parallel.ranks > 1:
        raise ConfigError(f"a model is measured by one process, not by {config.parallel}; leave the ranks out")
    args.prompts = args.prompts or [*PROMPTS]
    wanted = read_wanted(args, sys.stdin)
    if args.place is not None:
        check_place("output", args.place, (".json",), args.overwrite)
    from omnimuse.loader.fits import place_of, write_fits
    from omnimuse.worker.find import find

    found_model = find(config)
    place = args.place or place_of(found_model.checkpoint)
    check_destination(place, (".json",))
    from omnimuse.engine.calibrate import calibrate, unmeasured
    from omnimuse.engine.local import start

    if why := unmeasured(found_model.door):
        raise ConfigError(f"{args.model} cannot be measured: {why}")
    asks, adjusted = asks_of(wanted, found_model.door)
    for line in adjusted:
        print(line, file=sys.stderr)
    engine = start(config)
    try:
        found = calibrate(engine, asks, args.difference, _teller(sys.stderr))
    finally:
        engine.close()
    about = {
        "prompts": [prompt["prompt"] for prompt in wanted.prompts],
        "difference": args.difference,
        "trials": [asdict(trial) for trial in found.trials],
    }
    kept = None
    try:
        write_fits(place, found.fits, about, found_model.checkpoint.arch)
        kept = str(place)
    finally:  # where the disk refuses, what was found is told all the same
        thresholds = thresholds_of(found.fits)
        told = about | {"auto": found.fits.auto, "thresholds": thresholds, "file": kept}
        seen = one_place(sys.stdout, sys.stderr)
        print(json.dumps(told, indent=1) if args.json else text(found, args.difference, kept, seen))
    return 0


def asks_of(wanted: Wanted, door: Door) -> tuple[list[Ask], list[str]]:
    """What is drawn behind `door`, as often as was `wanted`, each with the next seed, and what was adjusted of it."""
    params, adjusted = wanted.behind(door)
    if params.cache is not None:
        raise ConfigError(f"--set cache={params.cache} chooses what is to be found out; leave it out")
    drawn = [prompt for prompt in wanted.prompts for _ in range(params.num_outputs_per_prompt or 1)]
    seeds = range(params.seed or 0, (params.seed or 0) + len(drawn))
    return [
        Ask(prompt, replace(params, seed=seed, num_outputs_per_prompt=1))
        for prompt, seed in zip(drawn, seeds, strict=True)
    ], adjusted


def text(found: Calibration, difference: float, place: str | None, seen: bool = False) -> str:
    """What was found, for people, and where it was written to; without the trials that were `seen` one by one."""
    rows: list[Sequence[str]] = [] if seen else [HEAD, *map(_row, found.trials)]
    polynomial = ", ".join(f"{value:.4g}" for value in found.fits.tea.coefficients)
    told = [
        (kind, f"threshold {threshold:g}{_doubt(kind, threshold, found.trials, difference)}")
        for kind, threshold in thresholds_of(found.fits).items()
    ]
    told += [("polynomial", polynomial), ("auto", found.fits.auto), ("written to", place or "nowhere")]
    return f"{columns(rows)}\n\n{columns(told)}" if rows else f"\n{columns(told)}"


def thresholds_of(fits: Fits) -> dict[str, float]:
    """What each kind has for a threshold that is left out."""
    return {"teacache": fits.tea.threshold, "dbcache": fits.dbcache, "magcache": fits.magcache}


def _doubt(kind: str, threshold: float, trials: Sequence[Trial], difference: float) -> str:
    """Why `threshold` is no finding; empty where it is one."""
    from omnimuse.engine.calibrate import by_threshold

    tried = by_threshold(trials).get(kind, {})
    if all(trial.work >= 1 for of in tried.values() for trial in of):
        return ", not measured: nothing was skipped; take more steps"
    if any(trial.difference > difference for trial in tried.get(threshold, [])):
        return f", the lowest that was tried: it changes more than {difference:g}"
    return ""


def _row(trial: Trial) -> Sequence[str]:
    return trial.choice, f"{trial.work:.2f}", f"{trial.difference:.3f}"


def _teller(stream: TextIO) -> Callable[[Trial], None]:
    """What tells of trials as they are made, in columns that nearly every choice fits in."""
    heads = [HEAD]

    def tell(trial: Trial) -> None:
        for row in (*heads, _row(trial)):
            print("  {:40}  {:10}  {}".format(*row), file=stream, flush=True)
        heads.clear()

    return tell


def one_place(*streams: TextIO) -> bool:
    """Whether what is written to these is read in one place, such as a terminal."""
    try:
        first, *others = (stream.fileno() for stream in streams)
        return all(os.path.sameopenfile(first, other) for other in others)
    except (OSError, ValueError):  # one is no file
        return False
