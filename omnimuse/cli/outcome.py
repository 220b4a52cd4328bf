"""How a job goes: saves each picture when it is done, and tells people (text) and programs (JSON) what there is.

The text is made from the same record as the JSON, so neither can know more than the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from omnimuse.cli import again
from omnimuse.cli.app import describe
from omnimuse.cli.job import Job
from omnimuse.cli.plot import blocks_of, held_of
from omnimuse.cli.table import columns
from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import OmnimuseError, RequestCancelled, RequestError
from omnimuse.core.loras import loras_of
from omnimuse.core.loras import told as told_loras
from omnimuse.core.output import Part, Result, Spent
from omnimuse.media.destination import free_names
from omnimuse.media.formats import FORMATS
from omnimuse.observe.progress import duration

Record = dict[str, Any]
_MADE = {"image": "drawn", "text": "written"}
_OF_THE_CALL = frozenset({"seed", "num_outputs_per_prompt", "output_type"})  # no settings of one picture


class Outcome:
    """What has come of a job so far: a row for every prompt that something has come of."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.errors: list[OmnimuseError] = []
        self.done = 0
        self._rows: dict[int, Record] = {}

    def take(self, index: int, result: Result, place: Mapping[str, str]) -> list[Path]:
        """Save what came of drawing number `index`, with its settings inside; returns its files, none if it failed.

        `place` (dtype and device) goes into the settings: the same seed gives another picture in another dtype.
        """
        drawing = self.job.drawings[index]
        row = self._row(drawing.row, result, place)
        keep_longest(row, spent_of(result))
        row["texts"] = [asdict(text) for text in result.texts] or row["texts"]
        row["shown"] = [list(size) for size in result.shown] or row["shown"]
        row["warnings"] = list(dict.fromkeys([*row["warnings"], *result.warnings]))
        if result.error is not None:
            self.errors.append(result.error)
            row["error"] = row["error"] or describe(result.error)
            return []
        saved = self._save(result, drawing.file, {**row["settings"], "seed": result.seeds[0]})
        row["made"] += [(index, number, str(file), result.seeds[0]) for number, file in enumerate(saved)]
        self.done += 1
        return saved

    def record(self, seconds: Mapping[str, float], stopped: str = "") -> Record:
        """Everything, for programs; `stopped` says why there is no more."""
        rows = []
        for number in sorted(self._rows):
            row = dict(self._rows[number])
            made = sorted(row.pop("made"))
            rows.append({**row, "files": [file for *_, file, _ in made], "seeds": [seed for *_, seed in made]})
        return {
            "model": self.job.config.model.model,
            "defaults": self.job.about,
            "results": rows,
            "there": [str(file) for file in self.job.there],
            "left": len(self.job.drawings) - self.done - len(self.errors),
            "stopped": stopped or None,
            "go_on": self.go_on() if stopped else None,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }

    def go_on(self) -> str | None:
        """The command that makes what is left over; None where nothing tells which files are new, or none is."""
        kept = self.done + len(self.job.there)
        if self.job.naming.overwrite or not kept or len(self.job.drawings) == self.done:
            return None
        return again.the_rest(self.job.words, self.job.first)

    def exit_code(self) -> int:
        """0 if all went well, 2 where other input would do, else 1."""
        if not self.errors:
            return 0
        wrong = all(isinstance(e, RequestError) and not isinstance(e, RequestCancelled) for e in self.errors)
        return 2 if wrong else 1

    def _row(self, number: int, result: Result, place: Mapping[str, str]) -> Record:
        if number not in self._rows:
            settings = {
                "model": self.job.config.model.model,
                **self.job.config.model.told,
                **told(self.job.prompts[number]),
                **settings_of(result),
                **place,
            }
            if engine := again.engine_settings(self.job.given):
                settings["engine"] = engine
            self._rows[number] = {
                "prompt": result.prompt,
                "settings": settings,
                **spent_of(Spent()),
                "texts": [],
                "shown": [],
                "warnings": list(self.job.doubts.get(number, ())),
                "error": None,
                "made": [],
            }
        return self._rows[number]

    def _save(self, result: Result, file: Path, settings: Record) -> list[Path]:
        """The first file has the name that was chosen; of further ones, the pictures of one output, it tells which."""
        from omnimuse.media.finished import files

        [parts] = result.parts
        held = list(enumerate(files(parts), 1))
        names = [file if number == 1 else file.with_stem(f"{file.stem}-layer{number}") for number, _ in held]
        return [self._save_one(parts, name, settings) for (_, parts), name in zip(held, names, strict=True)]

    def _save_one(self, parts: Sequence[Part], file: Path, settings: Record) -> Path:
        from omnimuse.media.finished import save

        while True:
            try:
                save(parts, file, settings, replace=self.job.naming.overwrite, quality=self.job.naming.compression)
                return file
            except FileExistsError:  # another program was quicker
                [file] = free_names(file, 1)


def spent_of(spent: Spent) -> Record:
    """What a prompt took, for programs: seconds by stage, step and run of a block, and bytes behind each."""
    return {
        "timings": {stage: round(seconds, 4) for stage, seconds in spent.timings.items()},
        "steps": {stage: [round(each, 5) for each in seconds] for stage, seconds in spent.steps.items()},
        "bytes": {stage: list(held) for stage, held in spent.held.items()},
        "blocks": {block: [round(each, 6) for each in runs] for block, runs in spent.blocks.items()},
        "block_bytes": {block: list(held) for block, held in spent.blocks_held.items()},
        "needs": spent.needs,
    }


def row_of(result: Result, prompt: str, seed: int) -> Record:
    """What came of one text, for programs, but for the names of its files."""
    row: Record = {"prompt": prompt, "seed": seed, "text": "", "files": [], "warnings": result.warnings}
    row |= spent_of(result)
    if result.error is not None:
        return row | {"error": describe(result.error)}
    [written] = result.written
    row |= {"text": result.text, "tokens": len(written.tokens), "reason": written.reason, "error": None}
    return row | {"prompt_tokens": result.prompt_tokens}


def keep_longest(row: Record, took: Record) -> None:
    """What another output of a prompt `took`, too: of every stage and block that of the output whose took longest, with
    its steps and bytes.
    """
    row["needs"] = max(row["needs"], took["needs"])
    whole = {**{stage: sum(steps) for stage, steps in took["steps"].items()}, **took["timings"]}
    for stage in [stage for stage, seconds in whole.items() if seconds >= row["timings"].get(stage, 0.0)]:
        for told in ("timings", "steps", "bytes"):
            _replace(row[told], took[told], stage)
    for block in [name for name, runs in took["blocks"].items() if sum(runs) >= sum(row["blocks"].get(name, ()))]:
        for told in ("blocks", "block_bytes"):
            _replace(row[told], took[told], block)


def _replace(there: Record, found: Record, name: str) -> None:
    """What is told of `name` there by what is found of it, which may be nothing."""
    if name in found:
        there[name] = found[name]
    else:
        there.pop(name, None)


def told(prompt: Mapping[str, Any]) -> Record:
    """The words of a prompt, and of its pictures and sounds what tells them from others."""
    sources = {name: [one.digest for one in prompt[name]] for name in ("images", "videos", "sounds") if name in prompt}
    mask = {"mask": prompt["mask"].digest} if "mask" in prompt else {}
    return {**prompt, **sources, **mask}


def settings_of(result: Result) -> Record:
    """The resolved parameters that make a picture what it is, besides its prompt and seed."""
    chosen = {**asdict(result.params), "loras": told_loras(loras_of(result.params.loras) or ())}
    return {name: value for name, value in chosen.items() if value not in (None, {}, []) and name not in _OF_THE_CALL}


def print_json(record: Record, out: TextIO) -> None:
    """The record as one JSON object; in ASCII where `out` cannot write all of Unicode."""
    plain = (out.encoding or "utf-8").lower().replace("-", "") != "utf8"
    print(json.dumps(record, indent=2, ensure_ascii=plain), file=out)


def print_text(record: Record, job: Job, out: TextIO) -> None:
    """Where the pictures are, how long each stage took, and what to try next."""
    rows = record["results"]
    if record["there"]:
        print(f"{len(record['there'])} of {len(job.prompts) * job.per_prompt} are there already", file=out)
    for row in rows:
        for file, seed in zip(row["files"], row["seeds"], strict=True):
            about = f'  "{_short(row["prompt"])}"' if len(job.prompts) > 1 else ""
            print(f"{file}  {_size(row)}seed {seed}{about}", file=out)
    if record["stopped"] or not any(row["files"] for row in rows):
        return
    print_spent(record, out)
    if record["defaults"]:
        print(record["defaults"], file=out)
    print("try next:", file=out)
    for command in suggestions(record, job):
        print(f"  {command}", file=out)


def print_spent(record: Record, out: TextIO, doing: str = "drawing") -> None:
    """How long each stage took, what one takes beside the weights, and what blocks took, where that is told."""
    print(_timing_line(record, doing), file=out)
    if needs := max(row["needs"] for row in record["results"]):
        print(f"memory: one takes {told_bytes(needs)} beside the weights", file=out)
    if blocks := blocks_of(record):
        print(_block_table(blocks, held_of(record)), file=out)


def print_warnings(record: Record, err: TextIO) -> None:
    """What people should know although all went well; once for all prompts it is true of."""
    about: dict[str, list[str]] = {}
    for row in record["results"]:
        for warning in row["warnings"]:
            about.setdefault(warning, []).append(row["prompt"])
    for warning, prompts in about.items():
        which = f'"{_short(prompts[0])}"' + (f" and {len(prompts) - 1} more" if len(prompts) > 1 else "")
        print(f"omnimuse: {which}: {warning}" if len(record["results"]) > 1 else f"omnimuse: {warning}", file=err)


def print_errors(record: Record, err: TextIO) -> None:
    """Every failed prompt with its reason, one line where all failed for the same one; and how to go on."""
    failed = [(row["prompt"], row["error"]["message"]) for row in record["results"] if row["error"]]
    if len({message for _, message in failed}) == 1 and len(failed) == len(record["results"]):
        failed = [("", failed[0][1])]
    for prompt, message in failed:
        about = f'"{_short(prompt)}": ' if prompt else ""
        print(f"omnimuse: {about}{message}", file=err)
    if record["stopped"]:
        print(_stopped_line(record), file=err)


def _stopped_line(record: Record) -> str:
    made = sum(len(row["files"]) for row in record["results"])
    if not made and not record["there"]:
        return f"omnimuse: {record['stopped']}"
    kept = f"{made + len(record['there'])} kept, {record['left']} left"
    how = f"; go on with:\n  {record['go_on']}" if record["go_on"] else ""
    return f"omnimuse: {record['stopped']}: {kept}{how}"


def suggestions(record: Record, job: Job) -> list[str]:
    """Commands that are worth trying after this one."""
    row = next(row for row in record["results"] if row["files"])
    prompt, file, seeds = row["prompt"], row["files"][0], row["seeds"]
    medium = next((medium for medium, kinds in FORMATS.items() if Path(file).suffix.lower() in kinds), "text")
    what = {"image": "picture", "audio": "sound"}.get(medium, medium)
    return [
        f"{again.same(prompt, job.given, file, seeds[0])}    # the same {what} again",
        f"{again.more(prompt, job.given, file, max(seeds))}    # four others, {_MADE.get(medium, 'made')} together",
        f"{again.explained(job.config.model.model, job.given)}    # what was chosen, and why",
    ]


def _timing_line(record: Record, doing: str) -> str:
    """Seconds per stage; of several prompts, which share their time, only the whole."""
    seconds, rows = record["seconds"], record["results"]
    stages = rows[0]["timings"] if len(rows) == 1 else {doing: seconds["draw"]}
    parts = [f"{name} {_precise(value)}" for name, value in stages.items() if value >= 0.0005]
    before = f"imports {duration(seconds['import'])}, load {duration(seconds['load'])}"
    return f"time: {before}, {', '.join(parts)}; {duration(seconds['total'])} in all"


def _block_table(blocks: Mapping[str, Sequence[float]], held: Mapping[str, int]) -> str:
    """What every block of a network took, in the order in which each was done for the first time; and, where that is
    told, the most that was held when it was done.
    """
    rows = [
        [name, str(len(runs)), *map(_thousandths, (sum(runs) / len(runs), sum(runs))), told_bytes(held.get(name, 0))]
        for name, runs in blocks.items()
    ]
    width = 5 if any(held.values()) else 4
    return columns([row[:width] for row in (["block", "runs", "ms a run", "ms in all", "held"], *rows)], indent=0)


def _thousandths(seconds: float) -> str:
    return f"{1000 * seconds:.3f}"


def _precise(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds < 1 else duration(seconds)


def _size(row: Record) -> str:
    width, height, frames, seconds = (
        row["settings"].get(name) for name in ("width", "height", "num_frames", "seconds")
    )
    moving = f"{frames} frames, " if frames else ""
    lasting = f"{seconds:.10g} s, " if seconds else ""
    return f"{width}x{height}, {moving}{lasting}" if width and height else moving + lasting


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
