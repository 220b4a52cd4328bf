"""Draw pictures, or with a model of videos, of sound or of text make those, from prompts.

examples:
  omnimuse generate "a red circle on a blue background"
  omnimuse generate "a green star above a white square" -n 4 --seed 7 -o stars.png
  omnimuse generate "a blue circle" --image picture.png --strength 0.7 -o blue.png
  omnimuse generate "a blue circle" --image picture.png --mask mask.png -o blue.png
  omnimuse generate --file prompts.txt --size 128x128 --steps 8 --guidance 2 -o many/
  omnimuse generate --from picture.png --seed 8
  echo "a pink ring" | omnimuse generate - --json --quiet
  omnimuse generate "Herons are" -m ./Qwen3-0.6B --set max_tokens=40 --set temperature=0
  omnimuse generate "Herons are" -m ./Qwen3-0.6B -o answer.txt

A text goes to stdout, or into a file that ends with .txt; to talk with such a model is what `omnimuse chat` is for.
No file is ever replaced unless --overwrite says so: a name that is taken gets the next free number.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO

from omnimuse.cli.app import STOPPED, STOPS, told
from omnimuse.cli.app import stopped as said
from omnimuse.cli.engine import add_engine_options, add_pool_options
from omnimuse.cli.job import DEFAULT_MODEL, NAMES, Job, plan
from omnimuse.cli.outcome import Outcome, print_errors, print_json, print_text, print_warnings
from omnimuse.cli.plot import plot
from omnimuse.cli.preview import PreviewFile
from omnimuse.cli.terms import add_adapters, add_deadline
from omnimuse.cli.timing import Clock, Recorder, recorded
from omnimuse.core.config import Config
from omnimuse.core.effort import EFFORT
from omnimuse.core.environment import Environment
from omnimuse.core.errors import OmnimuseError
from omnimuse.core.flow import SCHEDULERS
from omnimuse.core.output import Event, Result
from omnimuse.core.params import DiffusionParams
from omnimuse.media.formats import COMPRESSION, FORMATS
from omnimuse.observe.progress import Display, display


class Engine(Recorder, Protocol):
    """What `generate` needs of `omnimuse.Omni`."""

    times_blocks: bool

    @property
    def place(self) -> Mapping[str, str]:
        """The dtype and the device it computes with."""

    def stream(
        self,
        prompts: Sequence[Any],
        params: Sequence[DiffusionParams],
        *,
        listen: Callable[[Event], None],
        previews: int,
        deadline: float | str | None,
    ) -> Iterator[tuple[int, Result]]:
        """The place of a prompt and its result, as each is done."""


Start = Callable[[Config], AbstractContextManager[Engine]]


@contextmanager
def unbroken() -> Iterator[None]:
    """What would end this waits until a file and what is told of it are whole. For the main thread."""
    waiting: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: waiting.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, heard in before.items():
            signal.signal(number, heard)
    if waiting:
        signal.raise_signal(waiting[0])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse generate`."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to draw; - reads lines from stdin")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="PROMPT", help="as PROMPT, also where it begins with -"
    )
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="read more prompts from FILE, one per line; # begins a comment"
    )
    parser.add_argument(
        "--from",
        "--settings",
        dest="source",
        type=Path,
        metavar="FILE",
        help="do as for the picture, video or sound in FILE (its settings are inside); other options change that",
    )
    add_picture_options(parser)
    parser.add_argument(
        "-m", "--model", metavar="MODEL", help=f"a bundled model, a folder or a hub id (default: {DEFAULT_MODEL})"
    )
    add_file_options(parser)
    add_deadline(parser)
    add_engine_options(parser)
    add_pool_options(parser)
    add_shown_options(parser)


def add_shown_options(parser: argparse.ArgumentParser) -> None:
    """What is told, and kept beside the files."""
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--preview", action="store_true", help="keep a small unfinished picture beside the output")
    shown.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    shown.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="write a picture of where the time went, by stage of every prompt and by block of a network",
    )
    shown.add_argument(
        "--profile", type=Path, metavar="FILE.json.gz", help="record every operation, for Perfetto; slower meanwhile"
    )
    shown.add_argument("--quiet", action="store_true", help="print nothing but the names of the files, as they appear")


def draws_alone(parser: argparse.ArgumentParser) -> None:
    """The command draws by `add_picture_options` and writes none of it into files: what a job has besides is as if
    nobody had said anything of it.
    """
    unsaid = argparse.ArgumentParser()
    for add in (add_file_options, add_deadline, add_shown_options, add_pool_options):
        add(unsaid)
    parser.set_defaults(**vars(unsaid.parse_args([])) | {"prompt": [], "file": None, "source": None})


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """What is drawn."""
    picture = parser.add_argument_group(
        "the picture (what is left out is the model's own default; names that other programs have for these, such as "
        "--num-inference-steps, are understood, too)"
    )
    picture.add_argument("-n", "--number", type=int, default=1, metavar="N", help="pictures per prompt (default: 1)")
    picture.add_argument("--seed", type=int, metavar="N", help="first seed; picture i of a prompt uses seed + i")
    picture.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    picture.add_argument(
        "--quality",
        metavar="WORD",
        help=f"instead of --steps: {', '.join(f'{word} {part:g}' for word, part in EFFORT.items())} times the model's",
    )
    picture.add_argument("--guidance", type=float, metavar="X", help="how strongly the prompt steers")
    picture.add_argument("--guidance-scale-2", type=float, metavar="X", help="the same for a second expert")
    picture.add_argument("--true-cfg-scale", type=float, metavar="X", help="guidance beside a distilled one")
    picture.add_argument(
        "--cfg-scale", type=float, metavar="X", help="classifier-free guidance, by the name that this model has for it"
    )
    picture.add_argument("--adjust", action="store_true", help="round size and frames to what the model can make")
    picture.add_argument("--size", metavar="WxH", help="width and height in pixels, such as 128x128")
    picture.add_argument("--width", type=int, metavar="N", help="instead of --size")
    picture.add_argument("--height", type=int, metavar="N", help="instead of --size")
    picture.add_argument("--frames", type=int, metavar="N", help="how many frames a video has")
    picture.add_argument("--fps", type=float, metavar="X", help="how many of them are shown in a second")
    picture.add_argument(
        "--seconds", type=float, metavar="X", help="how long a sound is, or a video instead of --frames"
    )
    picture.add_argument("--start", type=float, metavar="X", help="where in the model's whole it begins, in seconds")
    picture.add_argument("--negative", metavar="TEXT", help="what to stay away from")
    _add_source_options(picture)
    picture.add_argument("--max-sequence-length", type=int, metavar="N", help="text tokens that are read of a prompt")
    picture.add_argument(
        "--flow-shift", type=float, metavar="X", help="how far the noise levels move up; 1: not at all"
    )
    picture.add_argument("--boundary-ratio", type=float, metavar="X", help="of the noise, above it the first expert")
    picture.add_argument("--scheduler", metavar="NAME", help=f"{', '.join(SCHEDULERS)}, in place of the checkpoint's")
    add_adapters(picture, "draw or write")
    picture.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of this model's family"
    )


def _add_source_options(picture: argparse._ArgumentGroup) -> None:
    """What it starts from."""
    picture.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to start from: of a video the first frame and, given once more, the last, where it may be",
    )
    picture.add_argument(
        "--video",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a video to start from, of which as many frames are read as are made; --strength says how much changes",
    )
    picture.add_argument(
        "--audio", type=Path, action="append", default=[], metavar="FILE", help="a sound to start from"
    )
    picture.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a picture of the same size that says what is drawn anew of it: where it is white or, if it is transparent"
        " anywhere, where it is that",
    )
    picture.add_argument(
        "--pad", metavar="LEFT,TOP,RIGHT,BOTTOM", help="draw on beyond its edges, by so many of its pixels"
    )
    picture.add_argument("--strength", type=float, metavar="X", help="how much of it is drawn anew: 0.01 to 1")


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Where it goes."""
    files = parser.add_argument_group("the files")
    files.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="PNG, JPEG or WebP by suffix, MP4 for a video, WAV, FLAC, OGG or MP3 for a sound, or a folder; several"
        f" become FILE-001, FILE-002 ... (default: {', '.join(NAMES[m] for m in FORMATS)}; of a text: stdout)",
    )
    files.add_argument(
        "--format", type=str.lower, metavar="SUFFIX", help="the kind of file where -o does not say it, such as flac"
    )
    files.add_argument(
        "--compression",
        metavar="N",
        help=f"quality of JPEG and WebP, 1 to 100, or {', '.join(COMPRESSION)} (default: 95)",
    )
    files.add_argument("--overwrite", action="store_true", help="replace files that have these names")
    files.add_argument("--resume", action="store_true", help="draw only what is not there yet, after an interruption")
    files.add_argument("--first", type=int, metavar="N", help="the first number (default: the next that is free)")


def run(args: argparse.Namespace) -> int:
    """Check everything that is cheap, then load the model and draw."""
    Environment.bound_spin()
    from omnimuse.cli.writing import checked, write
    from omnimuse.worker.find import find

    job = plan(args, sys.stdin)
    found = find(job.config)
    if found.spec.writes:
        job = checked(job, found)
        return write(job, import_engine, stdout=sys.stdout, stderr=sys.stderr)
    return draw(job.at_the_door(found), import_engine, stdout=sys.stdout, stderr=sys.stderr)


def import_engine(config: Config) -> Start:
    """Import torch and the libraries this model needs; returns what loads a model and starts the real engine."""
    import_module("omnimuse.engine.local")
    from omnimuse.api import Omni
    from omnimuse.worker.build import import_libraries

    import_libraries(config)

    return lambda config: Omni(config.model.model, config=config)


def draw(job: Job, prepare: Callable[[Config], Start], *, stdout: TextIO, stderr: TextIO) -> int:
    """Draw the pictures of `job`, save each when it is done and tell how it went; returns the exit code."""
    outcome, clock = Outcome(job), Clock()
    stopped = _draw(job, prepare, outcome, clock, stdout, stderr) if job.drawings else ""
    record = outcome.record(clock.seconds(), stopped)
    if job.shown.plot is not None:
        try:
            plot(record, job.shown.plot, job.naming.overwrite)
        except OSError as error:  # what was drawn is told all the same
            stopped = stopped or told(error)
            record = outcome.record(clock.seconds(), stopped)
    if job.shown.as_json:
        print_json(record, stdout)
    elif not job.shown.quiet:
        print_text(record, job, stdout)
    if not job.shown.quiet:
        print_warnings(record, stderr)
    print_errors(record, stderr)
    if stopped:
        return STOPPED.get(stopped, 1)
    return outcome.exit_code()


def _draw(
    job: Job, prepare: Callable[[Config], Start], outcome: Outcome, clock: Clock, stdout: TextIO, stderr: TextIO
) -> str:
    """Why this ended before its end; empty if it did not."""
    try:
        with display(len(job.drawings), stderr, quiet=job.shown.quiet) as shown:
            shown.say("importing torch and what this model needs")
            start = prepare(job.config)
            clock.reach("import")
            shown.say(f"loading {job.config.model.model}" + (f"; {job.about}" if job.about else ""))
            with start(job.config) as engine:
                clock.reach("load")
                with recorded(job.shown.profile, engine, clock):
                    _take_all(job, engine, outcome, shown, stdout)
    except STOPS as stop:
        return said(stop)
    except (OSError, OmnimuseError) as error:  # such as a full disk
        if not outcome.done:
            raise
        return told(error)
    finally:
        clock.reach("draw")
    return ""


def _take_all(job: Job, engine: Engine, outcome: Outcome, shown: Display, stdout: TextIO) -> None:
    prompts = [job.prompts[drawing.row] for drawing in job.drawings]
    params = [job.params_of(drawing) for drawing in job.drawings]
    with PreviewFile(job.preview_file) as preview:

        def listen(event: Event) -> None:
            shown(event)
            preview(event)

        looks, wanted = int(job.preview_file is not None), job.terms.deadline
        engine.times_blocks = job.shown.blocks
        results = engine.stream(prompts, params, listen=listen, previews=looks, deadline=wanted)
        for index, result in results:
            with unbroken():
                files = outcome.take(index, result, engine.place)
            if job.shown.quiet and not job.shown.as_json:
                for file in files:
                    print(file, file=stdout, flush=True)
