"""What `omnimuse generate` was asked to do, read from its options and checked before torch is imported.

`plan` reads and checks what needs no model; `Job.at_the_door` checks the rest against the model's own limits, from
its small configuration files. Nothing here loads weights.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from omnimuse.cli.engine import read_config
from omnimuse.core.config import Config
from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.media.destination import check_destination, numbered

DEFAULT_MODEL = "omnimuse/shapes"
PICTURE, VIDEO = Path("picture.png"), Path("video.mp4")
"""Where what a model makes goes if nobody says where."""


@dataclass(frozen=True)
class Job:
    """Prompts, one set of parameters for all of them, and a file name for every picture or video in order.

    `images` names the files of the pictures that every prompt comes with.
    """

    config: Config
    prompts: list[dict[str, Any]]
    params: DiffusionParams
    images: tuple[Path, ...] = ()
    output: Path | None = None
    previews: bool = False
    as_json: bool = False
    quiet: bool = False

    @property
    def preview_file(self) -> Path | None:
        """Where the unfinished picture is kept, if it was asked for."""
        first = self.output or PICTURE
        return first.with_name(f"{first.stem}.preview.png") if self.previews else None

    @property
    def per_prompt(self) -> int:
        """Pictures or videos per prompt."""
        return self.params.num_outputs_per_prompt or 1

    @property
    def files(self) -> list[Path]:
        """A name for every picture or video; `per_prompt` of them for each prompt, in order."""
        return numbered(self.output or PICTURE, len(self.prompts) * self.per_prompt)

    def at_the_door(self) -> Job:
        """This job with a file that fits what the model makes; no torch, no weights.

        ModelError or RequestError if the model is incomplete, would refuse a prompt or makes something else;
        ConfigError without the library that writes such files.
        """
        from omnimuse.core.request import Ask
        from omnimuse.media.image import check_picture_destination
        from omnimuse.media.video import check_video_destination
        from omnimuse.worker.find import find

        door = find(self.config).door
        for prompt in self.prompts:
            door.make_request(Ask(prompt, self.params), now=0.0, fresh_seed=0)
        moving = door.spec.makes_video
        output = self.output or (VIDEO if moving else PICTURE)
        (check_video_destination if moving else check_picture_destination)(output)
        return replace(self, output=output)


def plan(args: argparse.Namespace, stdin: TextIO) -> Job:
    """The job that the options ask for; RequestError or ConfigError where they make no sense."""
    from omnimuse.media.image import FORMATS
    from omnimuse.media.picture import open_picture
    from omnimuse.media.video import SUFFIXES

    width, height = read_size(args.size)
    params = DiffusionParams(
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        height=height,
        width=width,
        num_frames=args.frames,
        fps=args.fps,
        seed=args.seed,
        num_outputs_per_prompt=args.number,
        strength=args.strength,
    )
    if args.number < 1:
        raise RequestError(f"-n {args.number} makes no picture; use at least 1", "num_outputs_per_prompt")
    shared = {} if args.negative is None else {"negative_prompt": args.negative}
    if args.image:
        shared["images"] = [open_picture(path) for path in args.image]
    prompts = [{"prompt": text, **shared} for text in read_prompts(args.prompts, args.file, stdin)]
    check_destination(args.output or PICTURE, (*FORMATS, *SUFFIXES))
    return Job(
        config=read_config(args),
        prompts=prompts,
        images=tuple(args.image),
        params=with_settings(params, args.set),
        output=args.output,
        previews=args.preview,
        as_json=args.json,
        quiet=args.quiet,
    )


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """`128x96` -> width 128 and height 96, in pixels."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text.strip())
    if match is None:
        raise RequestError(f"--size {text} is not WIDTHxHEIGHT in pixels; write it like 128x128", "size")
    return int(match[1]), int(match[2])


def with_settings(params: DiffusionParams, pairs: list[str]) -> DiffusionParams:
    """`params` with NAME=VALUE pairs set: fields of every model by name, all others as the family's own parameters."""
    settings = read_settings(pairs)
    fields = {name: settings.pop(name) for name in list(settings) if hasattr(params, name) and name != "extra"}
    return replace(params, **fields, extra=settings or None)


def read_settings(pairs: list[str]) -> dict[str, Any]:
    """`["strength=0.5"]` -> `{"strength": 0.5}`; values are JSON, anything else is text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given or not name.strip():
            raise RequestError(f"--set {pair} is not NAME=VALUE; write it like max_sequence_length=256", "set")
        try:
            settings[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            settings[name.strip()] = value
    return settings


def read_prompts(words: list[str], file: Path | None, stdin: TextIO) -> list[str]:
    """The prompts from the arguments (`-` stands for the lines of stdin), then those from `file`."""
    prompts: list[str] = []
    for word in words:
        prompts += _lines(stdin.read()) if word == "-" else [word]
    if file is not None:
        try:
            prompts += _lines(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read prompts from {file}: {error}", "file") from None
    if not prompts:
        raise RequestError('there is no prompt; write one, such as omnimuse generate "a red circle"', "prompt")
    if any(not prompt.strip() for prompt in prompts):
        raise RequestError("a prompt is empty; say what to draw", "prompt")
    return prompts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
