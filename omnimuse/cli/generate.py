"""Draw pictures, or with a model of videos make videos, from prompts.

examples:
  omnimuse generate "a red circle on a blue background"
  omnimuse generate "a green star above a white square" -n 4 --seed 7 -o stars.png
  omnimuse generate "a blue circle" --image picture.png --strength 0.7 -o blue.png
  omnimuse generate --file prompts.txt --size 128x128 --steps 8 --guidance 2
  echo "a pink ring" | omnimuse generate - --json --quiet
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO

from omnimuse.cli import outcome
from omnimuse.cli.engine import add_engine_options
from omnimuse.cli.job import DEFAULT_MODEL, Job, plan
from omnimuse.cli.preview import PreviewFile
from omnimuse.core.config import Config, Environment
from omnimuse.core.errors import RequestCancelled, RequestError
from omnimuse.core.output import Event, Result
from omnimuse.core.params import DiffusionParams
from omnimuse.observe.progress import Display, display


class Engine(Protocol):
    """What `generate` needs of `omnimuse.Omni`."""

    @property
    def place(self) -> Mapping[str, str]:
        """The dtype and the device it computes with."""

    def generate(
        self,
        prompts: Sequence[Any],
        params: DiffusionParams,
        *,
        progress: Callable[[Event], None],
        previews: int,
    ) -> list[Result]:
        """One result per prompt, in order."""


Start = Callable[[Config], AbstractContextManager[Engine]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse generate`."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw; - reads lines from stdin")
    parser.add_argument("--file", type=Path, metavar="FILE", help="read more prompts from FILE, one per line")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="PNG, JPEG or WebP by suffix, MP4 for a video; several become FILE-1, FILE-2 ...; an old file is replaced"
        " (default: picture.png or video.mp4)",
    )
    picture = parser.add_argument_group("the picture (what is left out is the model's own default)")
    picture.add_argument("-n", "--number", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)")
    picture.add_argument("--seed", type=int, metavar="N", help="first seed; picture i of a prompt uses seed + i")
    picture.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    picture.add_argument("--guidance", type=float, metavar="X", help="how strongly the prompt steers")
    picture.add_argument("--size", metavar="WxH", help="width and height in pixels, such as 128x128")
    picture.add_argument("--frames", type=int, metavar="N", help="how many frames a video has")
    picture.add_argument("--fps", type=float, metavar="X", help="how many of them are shown in a second")
    picture.add_argument("--negative", metavar="TEXT", help="what to stay away from")
    picture.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="a picture to start from"
    )
    picture.add_argument("--strength", type=float, metavar="X", help="how much of it is drawn anew: 0.01 to 1")
    picture.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other parameter, such as true_cfg_scale=4"
    )
    picture.add_argument(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a bundled model, a folder or a hub id (default: {DEFAULT_MODEL})",
    )
    add_engine_options(parser)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--preview", action="store_true", help="keep a small unfinished picture beside the output")
    shown.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    shown.add_argument("--quiet", action="store_true", help="print nothing but the names of the files")


def run(args: argparse.Namespace) -> int:
    """Check everything that is cheap, then load the model and draw."""
    Environment.bound_spin()
    job = plan(args, sys.stdin).at_the_door()
    return draw(job, import_engine, stdout=sys.stdout, stderr=sys.stderr)


def import_engine(config: Config) -> Start:
    """Import torch and the libraries this model needs; returns what loads a model and starts the real engine."""
    import_module("omnimuse.engine.local")
    from omnimuse.api import Omni
    from omnimuse.worker.build import import_libraries

    import_libraries(config)

    return lambda config: Omni(config.model.model, config=config)


def draw(job: Job, prepare: Callable[[Config], Start], *, stdout: TextIO, stderr: TextIO) -> int:
    """Draw the pictures of `job`, save them and tell how it went; returns the exit code."""
    began = time.perf_counter()
    with display(len(job.prompts), stderr, quiet=job.quiet) as shown:
        shown.say("importing torch and what this model needs")
        start = prepare(job.config)
        imported = time.perf_counter()
        shown.say(f"loading {job.config.model.model}")
        with start(job.config) as engine:
            loaded = time.perf_counter()
            results, place = _generate(job, engine, shown), dict(engine.place)
            drawn = time.perf_counter()
    seconds = {
        "import": imported - began,
        "load": loaded - imported,
        "draw": drawn - loaded,
        "total": drawn - began,
    }
    record = outcome.save(job, results, seconds, place)
    if job.as_json:
        outcome.print_json(record, stdout)
    else:
        outcome.print_text(record, job, stdout)
    outcome.print_errors(record, stderr)
    return _exit_code(results)


def _generate(job: Job, engine: Engine, shown: Display) -> list[Result]:
    with PreviewFile(job.preview_file) as preview:

        def listen(event: Event) -> None:
            shown(event)
            preview(event)

        return engine.generate(job.prompts, job.params, progress=listen, previews=int(job.preview_file is not None))


def _exit_code(results: Sequence[Result]) -> int:
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return 0
    wrong_input = all(isinstance(e, RequestError) and not isinstance(e, RequestCancelled) for e in errors)
    return 2 if wrong_input else 1
