"""How a job went: saves its pictures, and tells people (text) and programs (JSON) what there is.

The text is made from the same record as the JSON, so neither can know more than the other.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from omnimuse.cli.app import describe
from omnimuse.cli.job import DEFAULT_MODEL, Job
from omnimuse.core.output import Result
from omnimuse.observe.progress import duration

Record = dict[str, Any]
_OF_THE_CALL = frozenset({"seed", "num_outputs_per_prompt", "output_type"})  # no settings of one picture


def save(job: Job, results: Sequence[Result], seconds: Mapping[str, float], place: Mapping[str, str]) -> Record:
    """Write every picture or video with its settings inside, and return the record of the whole job.

    `place` (dtype and device) goes into the settings: the same seed gives another picture in another dtype.
    """
    rows = []
    for index, result in enumerate(results):
        files = job.files[index * job.per_prompt : (index + 1) * job.per_prompt]
        settings = {"model": job.config.model.model, **told(job.prompts[index]), **settings_of(result), **place}
        rows.append(_save_result(result, files, settings))
    return {
        "model": job.config.model.model,
        "results": rows,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }


def _save_result(result: Result, files: Sequence[Path], settings: Record) -> Record:
    from omnimuse.media.image import save_image
    from omnimuse.media.video import save_video

    saved = []
    if result.error is None:
        made = [(save_image, image) for image in result.images] + [(save_video, video) for video in result.videos]
        for path, (write, one), seed in zip(files, made, result.seeds, strict=True):
            write(one, path, {**settings, "seed": seed})
            saved.append(str(path))
    return {
        "prompt": result.prompt,
        "files": saved,
        "seeds": list(result.seeds),
        "settings": settings,
        "timings": {name: round(value, 4) for name, value in result.timings.items()},
        "error": None if result.error is None else describe(result.error),
    }


def told(prompt: Mapping[str, Any]) -> Record:
    """The words of a prompt, and of its pictures what tells them from others."""
    pictures = {"images": [picture.digest for picture in prompt["images"]]} if "images" in prompt else {}
    return {**prompt, **pictures}


def settings_of(result: Result) -> Record:
    """The resolved parameters that make a picture what it is, besides its prompt and seed."""
    chosen = asdict(result.params)
    return {name: value for name, value in chosen.items() if value not in (None, {}) and name not in _OF_THE_CALL}


def print_json(record: Record, out: TextIO) -> None:
    """The record as one JSON object."""
    print(json.dumps(record, indent=2, ensure_ascii=False), file=out)


def print_text(record: Record, job: Job, out: TextIO) -> None:
    """Where the pictures are, how long each stage took, and what to try next; only the names when quiet."""
    rows = record["results"]
    for row in rows:
        for file, seed in zip(row["files"], row["seeds"], strict=False):
            about = f'  "{_short(row["prompt"])}"' if len(rows) > 1 else ""
            print(file if job.quiet else f"{file}  {_size(row)}seed {seed}{about}", file=out)
    if job.quiet or not any(row["files"] for row in rows):
        return
    print(_timing_line(record), file=out)
    print("try next:", file=out)
    for command in suggestions(record, job):
        print(f"  {command}", file=out)


def print_errors(record: Record, err: TextIO) -> None:
    """Every failed prompt with its reason; one line where all failed for the same one."""
    failed = [(row["prompt"], row["error"]["message"]) for row in record["results"] if row["error"]]
    if len({message for _, message in failed}) == 1 and len(failed) == len(record["results"]):
        failed = [("", failed[0][1])]
    for prompt, message in failed:
        about = f'"{_short(prompt)}": ' if prompt else ""
        print(f"omnimuse: {about}{message}", file=err)


def suggestions(record: Record, job: Job) -> list[str]:
    """Commands that are worth trying after this one."""
    row = next(row for row in record["results"] if row["files"])
    words = [_quoted(row["prompt"])]
    if negative := row["settings"].get("negative_prompt"):
        words += ["--negative", _quoted(negative)]
    for path in job.images:
        words += ["--image", shlex.quote(str(path))]
    if job.images and job.params.strength is not None:
        words += ["--strength", f"{job.params.strength:g}"]
    if job.config.model.model != DEFAULT_MODEL:
        words += ["-m", shlex.quote(job.config.model.model)]
    again = f"omnimuse generate {' '.join(words)}"
    return [
        f"{again} --seed {row['seeds'][0]}    # the same picture again",
        f"{again} -n 4    # four others, drawn together",
        f"omnimuse explain {shlex.quote(job.config.model.model)}    # what was chosen, and why",
    ]


def _quoted(text: str) -> str:
    return shlex.quote(text) if any(mark in text for mark in '"$`\\!') else f'"{text}"'


def _timing_line(record: Record) -> str:
    """Seconds per stage; of several prompts, which share their time, only the whole."""
    seconds, rows = record["seconds"], record["results"]
    stages = rows[0]["timings"] if len(rows) == 1 else {"drawing": seconds["draw"]}
    parts = [f"{name} {_precise(value)}" for name, value in stages.items() if value >= 0.0005]
    before = f"imports {duration(seconds['import'])}, load {duration(seconds['load'])}"
    return f"time: {before}, {', '.join(parts)}; {duration(seconds['total'])} in all"


def _precise(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds < 1 else duration(seconds)


def _size(row: Record) -> str:
    width, height, frames = (row["settings"].get(name) for name in ("width", "height", "num_frames"))
    moving = f"{frames} frames, " if frames else ""
    return f"{width}x{height}, {moving}" if width and height else moving


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
