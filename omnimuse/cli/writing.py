"""`omnimuse generate` with a model that writes: texts on stdout or in files, and the pictures that come with them.

One prompt is told word by word. Pictures of a model that draws beside its text go into files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from omnimuse.cli.app import told
from omnimuse.cli.job import NAMES, Drawing, Job
from omnimuse.cli.outcome import Record, print_json, print_spent, row_of
from omnimuse.cli.plot import plot
from omnimuse.cli.terms import check_adapters
from omnimuse.cli.timing import Clock, recorded
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError, OmnimuseError, RequestError
from omnimuse.core.output import Chunk, Event, Result
from omnimuse.core.request import Ask
from omnimuse.media.destination import free_names, write_whole
from omnimuse.media.formats import FORMATS, WRITTEN
from omnimuse.worker.find import Found

Prepare = Callable[[Config], Callable[[Config], AbstractContextManager[Any]]]


def checked(job: Job, found: Found) -> Job:
    """`job` with seeds and names of files; ConfigError or RequestError for what a model that writes cannot do."""
    from omnimuse.media.finished import check_file

    others = {"--preview": job.shown.previews, "--resume": job.naming.resume, "--adjust": job.terms.adjust}
    others |= {"--cfg-scale": job.terms.cfg_scale is not None, "--quality": job.terms.quality is not None}
    if wrong := [option for option, given in others.items() if given]:
        raise ConfigError(f"{wrong[0]} is for models that draw, and {found.folder.id} writes; leave it out")
    for prompt in job.prompts:
        found.door.make_request(Ask(prompt, job.params, deadline=job.terms.deadline), now=0.0, fresh_seed=0)
    check_adapters(job.params)
    placed, asked = job.placed("text"), job.naming.output
    suffix = placed.drawings[0].file.suffix.lower()
    if found.door.limits.draws:
        pictures = [_pictured(placed, drawing) for drawing in placed.drawings]
        free = [] if job.naming.overwrite else [free_names(picture, len(pictures)) for picture in pictures]
        placed.check_plot([*pictures, *chain(*free)])
    if found.door.limits.draws and suffix in FORMATS["image"]:
        check_file(placed.drawings[0].file, "image")
    elif asked is not None and suffix != WRITTEN:
        what = f"a text goes into a file that ends with {WRITTEN}"
        raise RequestError(f"{placed.drawings[0].file} cannot be: {what}, or to stdout without -o", "output")
    return placed


def write(job: Job, prepare: Prepare, *, stdout: TextIO, stderr: TextIO) -> int:
    """Write the texts of `job` with the `Omni` that `prepare` makes, tell them or keep them; the exit code.

    Where its time went is told on stderr, as texts alone go to stdout.
    """
    aloud = len(job.drawings) == 1 and not job.shown.as_json and not _kept(job)
    rows, clock = dict[int, Record](), Clock()

    def listen(event: Event) -> None:
        if aloud and isinstance(event, Chunk) and event.medium == "text":
            print(event.data, end="", file=stdout, flush=True)

    start, wanted, problems = prepare(job.config), job.terms.deadline, list[str]()
    clock.reach("import")
    try:
        with start(job.config) as engine:
            clock.reach("load")
            prompts = [job.prompts[drawing.row] for drawing in job.drawings]
            params = [job.params_of(drawing) for drawing in job.drawings]
            engine.times_blocks = job.shown.blocks
            with recorded(job.shown.profile, engine, clock):
                for index, result in engine.stream(prompts, params, listen=listen, chunks=aloud, deadline=wanted):
                    rows[index] = _row(job, job.drawings[index], result)
                    if aloud:
                        print(file=stdout)
    except (OSError, OmnimuseError) as error:  # such as a full disk; what was written is told all the same
        if not rows:
            raise
        problems.append(told(error))
    clock.reach("draw")
    made = [rows[index] for index in sorted(rows)]
    record = {"model": job.config.model.model, "results": made, "seconds": clock.seconds()}
    _tell(record, job, aloud, stdout, stderr)
    if job.shown.plot is not None:
        try:
            plot(record, job.shown.plot, job.naming.overwrite)
        except OSError as error:
            problems.append(told(error))
    print("".join(f"omnimuse: {problem}\n" for problem in problems), end="", file=stderr)
    if problems:
        return 1
    wrong = [row["error"] for row in made if row["error"]]
    return 0 if not wrong else 2 if all(error["kind"] == "RequestError" for error in wrong) else 1


def _tell(record: Record, job: Job, aloud: bool, stdout: TextIO, stderr: TextIO) -> None:
    """What there is to say once all is written; texts, unless they were told `aloud` or kept."""
    if job.shown.as_json:
        print_json(record, stdout)
    made = record["results"]
    for row in made:
        if not job.shown.as_json:
            texts = [row["text"]] if not row["error"] and not aloud and not _kept(job) else []
            print("".join(f"{line}\n" for line in (*texts, *row["files"])), end="", file=stdout)
        if not job.shown.quiet:
            print("".join(f"omnimuse: {warning}\n" for warning in row["warnings"]), end="", file=stderr)
        if row["error"]:
            print(f"omnimuse: {row['error']['message']}", file=stderr)
    if job.shown.blocks and not job.shown.as_json and not job.shown.quiet:
        print_spent(record, stderr, "writing")


def _kept(job: Job) -> bool:
    """Whether texts go into files."""
    return job.naming.output is not None and job.drawings[0].file.suffix.lower() == WRITTEN


def _row(job: Job, drawing: Drawing, result: Result) -> Record:
    """What came of one text, for programs; its files are written."""
    row = row_of(result, result.prompt, drawing.seed)
    if row["error"]:
        return row
    if _kept(job):
        file = _free(job, drawing.file)
        write_whole(file, f"{result.text}\n".encode(), replace=job.naming.overwrite)
        row["files"].append(str(file))
    for picture in [part for part in result.parts[0] if part.medium == "image"]:
        from omnimuse.media.finished import save

        file = _free(job, _pictured(job, drawing))
        model = job.config.model
        settings = {"model": model.model, **model.told, "prompt": result.prompt, "seed": drawing.seed}
        save([picture], file, settings, replace=job.naming.overwrite, quality=job.naming.compression)
        row["files"].append(str(file))
    return row


def _pictured(job: Job, drawing: Drawing) -> Path:
    """Where the picture of a text goes: as was asked, or beside the text by its name."""
    if job.naming.output is None:
        return Path(NAMES["image"])
    return drawing.file if drawing.file.suffix.lower() in FORMATS["image"] else drawing.file.with_suffix(".png")


def _free(job: Job, file: Path) -> Path:
    return file if job.naming.overwrite else free_names(file, 1)[0]
