"""Compare a family with the reference: the same checkpoint, noise and parameters through us and through diffusers.

Text features, schedule, every block, every step, the latents and the result are compared, and the first part that is
apart is named. Both load the checkpoint, so it should be a small one; float32 unless --dtype says otherwise.

examples:
  omnimuse parity ./my-tiny-model
  omnimuse parity ./my-tiny-model "two green stars" --steps 4 --size 64x64 --negative grey --report parity.md
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from omnimuse.cli.engine import add_engine_options
from omnimuse.cli.generate import add_picture_options, draws_alone
from omnimuse.cli.job import plan
from omnimuse.cli.table import columns
from omnimuse.core.errors import RequestError

PROMPT = "a red circle on a blue background"
TOLERANCE = 1e-5


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse parity`."""
    parser.add_argument("model", metavar="MODEL", help="a folder or hub id")
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help=f"what to draw (default: {PROMPT!r})")
    add_picture_options(parser)
    add_engine_options(parser)
    draws_alone(parser)
    parser.set_defaults(dtype="float32")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help=f"what counts as agreement (default: {TOLERANCE:g})",
    )
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write a page, with both pictures beside it")
    parser.add_argument("--json", action="store_true", help="print every part as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Compare, and say where the two part; 1 if they do."""
    args.prompts = args.prompts or [PROMPT]
    if len(args.prompts) > 1:
        raise RequestError("one prompt is compared at a time; put it in quotation marks", "prompt")
    job = plan(args, sys.stdin).at_the_door()
    from omnimuse.core.request import Ask
    from omnimuse.parity.compare import first_apart
    from omnimuse.parity.report import pictures_of, rows, verdict, write_report
    from omnimuse.parity.run import parity

    files = [] if args.report is None else [args.report, *pictures_of(args.report)]
    if there := [file for file in files if file.exists()]:
        raise RequestError(f"{there[0]} is there already; choose another name", "report")

    outcome = parity(job.config, Ask(job.prompts[0], job.params))
    if args.json:
        print(json.dumps([asdict(part) for part in outcome.parts], indent=2))
    else:
        print(columns(rows(outcome, args.tolerance)))
        print(verdict(outcome, args.tolerance))
    if args.report is not None:
        command = shlex.join(["omnimuse", "parity", *args.words])
        for file in write_report(outcome, args.tolerance, args.report, command):
            print(f"wrote {file}", file=sys.stderr)
    return 0 if first_apart(outcome.parts, args.tolerance) is None else 1
