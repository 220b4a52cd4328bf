"""What `omnimuse generate` was asked to do, read from its options and checked before torch is imported.

`plan` reads and checks what needs no model; `Job.at_the_door` checks the rest against the model's own limits, from
its small configuration files, and gives every picture its seed and its file. Nothing here loads weights.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from omnimuse.cli.again import completed, read_settings
from omnimuse.cli.app import option_of
from omnimuse.cli.engine import read_config, with_pools
from omnimuse.cli.plot import KINDS, check_place
from omnimuse.cli.prompts import NONE, read_prompts
from omnimuse.cli.terms import Terms, check_adapters, read_adapters, read_deadline
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.media.destination import check_destination, destination, free_names, next_number, numbered
from omnimuse.media.formats import COMPRESSION, PICTURES, WRITTEN

if TYPE_CHECKING:
    from omnimuse.core.request import Door
    from omnimuse.worker.find import Found

DEFAULT_MODEL = "omnimuse/shapes"
NAMES = MappingProxyType(
    {"image": "picture.png", "video": "video.mp4", "audio": "sound.wav", "text": f"answer{WRITTEN}"}
)
"""What a file is called if nobody says how, by what the model makes."""


@dataclass(frozen=True)
class Drawing:
    """One picture, video or sound to make: for which prompt (its place in the job), with which seed, and its file."""

    row: int
    seed: int
    file: Path


@dataclass(frozen=True)
class Naming:
    """How files get their names: where they go, whether old ones may be replaced, whether those that are there count.

    `format` is the suffix of those that nobody named, without its dot; None: the usual one. `first` is the number of
    the first of several files; None: the next free one. `compression` is the quality of a lossy picture, 1 to 100;
    None: ours.
    """

    output: str | None = None
    format: str | None = None
    overwrite: bool = False
    resume: bool = False
    first: int | None = None
    compression: int | None = None

    def check_compression(self, file: Path) -> None:
        """RequestError if a quality was chosen for a file that loses nothing, or is no picture."""
        if self.compression is not None and PICTURES.get(file.suffix.lower(), "PNG") == "PNG":
            raise RequestError(
                f"--compression is for JPEG and WebP pictures, and {file.name} is neither; name it .jpg or .webp, or "
                "leave it out",
                "compression",
            )


@dataclass(frozen=True)
class Shown:
    """What is shown of a job while it runs and at its end."""

    previews: bool = False
    as_json: bool = False
    quiet: bool = False
    plot: Path | None = None
    profile: Path | None = None

    @property
    def blocks(self) -> bool:
        """Whether it is told what every block of a network takes."""
        return self.plot is not None or self.profile is not None


@dataclass(frozen=True)
class Wanted:
    """What is asked of a model: prompts with what comes beside them, one set of parameters for all, and its terms."""

    prompts: list[dict[str, Any]]
    params: DiffusionParams
    terms: Terms = Terms()

    def behind(self, door: Door) -> tuple[DiffusionParams, list[str]]:
        """The parameters that this means behind `door`, and what was adjusted of them; RequestError where a prompt is
        refused there, or an adapter is not there. No torch, no weights.
        """
        from omnimuse.core.request import Ask

        params = self._with_cfg_scale("true_cfg_scale" in door.spec.supported)
        params = self.terms.with_frames(self.terms.with_steps(params, door), door)
        params, told = door.adjusted(params) if self.terms.adjust else (params, [])
        for prompt in self.prompts:
            if door.spec.prompted and not prompt["prompt"]:
                raise RequestError(NONE, "prompt")
            door.make_request(Ask(prompt, params, deadline=self.terms.deadline), now=0.0, fresh_seed=0)
        check_adapters(params)
        return params, told

    def _with_cfg_scale(self, true_cfg: bool) -> DiffusionParams:
        """The parameters with `--cfg-scale` put where this model has its classifier-free guidance."""
        if (scale := self.terms.cfg_scale) is None:
            return self.params
        name = "true_cfg_scale" if true_cfg else "guidance_scale"
        if getattr(self.params, name) is not None:
            raise RequestError(f"--cfg-scale and {option_of(name)} are one choice with this model; leave one out", name)
        chosen = DiffusionParams(true_cfg_scale=scale) if true_cfg else DiffusionParams(guidance_scale=scale)
        return replace(chosen.over(self.params), extra=self.params.extra)


@dataclass(frozen=True)
class Job:
    """Prompts, one set of parameters for all of them, and every picture, video or sound that is to be made, in order.

    `asked` is the name that their files were asked to have, `first` the first number. `there` are the files that an
    earlier run left and `resume` counts. `words` is the command line that asked for the job, `given` its options by
    name (see `Parser`). `about` says whose defaults are taken, `doubts` why what is asked may not come out well, by
    the place of the prompt.
    """

    config: Config
    prompts: list[dict[str, Any]]
    params: DiffusionParams
    naming: Naming = Naming()
    shown: Shown = Shown()
    words: tuple[str, ...] = ()
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    terms: Terms = Terms()
    drawings: tuple[Drawing, ...] = ()
    there: tuple[Path, ...] = ()
    first: int = 1
    asked: Path | None = None
    about: str = ""
    doubts: Mapping[int, list[str]] = field(default_factory=dict)

    @property
    def preview_file(self) -> Path | None:
        """Where the unfinished picture is kept, if it was asked for: a name that no file has."""
        if not self.shown.previews or self.asked is None:
            return None
        return free_names(self.asked.with_name(f"{self.asked.stem}.preview.png"), 1)[0]

    @property
    def per_prompt(self) -> int:
        """Pictures, videos or sounds per prompt."""
        return self.params.num_outputs_per_prompt or 1

    def at_the_door(self, found: Found | None = None) -> Job:
        """This job with files that fit what the model makes; no torch, no weights.

        `found` is the model, if it was found already. ModelError or RequestError if it is incomplete, would refuse a
        prompt or makes something else; ConfigError without the library that writes such files.
        """
        from omnimuse.media.finished import check_file
        from omnimuse.worker.find import find

        found = found or find(self.config)
        if found.spec.writes:
            raise ConfigError(f"{found.folder.id} writes text, and this is for what draws")
        door, taught = found.door, found.taught
        params, told = Wanted(self.prompts, self.params, self.terms).behind(door)
        job = replace(self, params=params)
        medium = door.spec.medium
        check_file(job.path(medium), medium)
        job.naming.check_compression(job.path(medium))
        doubts = {
            index: [*told, *(taught.doubts(prompt["prompt"], job.params) if taught is not None else ())]
            for index, prompt in enumerate(job.prompts)
        }
        return replace(job.placed(medium), about=found.about_defaults, doubts=doubts)

    def path(self, medium: str) -> Path:
        """What was asked for as the name of the file, or of all of them but for their numbers."""
        return named(self.naming, medium)

    def placed(self, medium: str) -> Job:
        """This job with a seed and a file for every picture, video or sound that is not there yet."""
        count = len(self.prompts) * self.per_prompt
        asked = self.path(medium)
        files = self._names(asked, count)
        drawings, there = [], []
        for row, _ in enumerate(self.prompts):
            seed = secrets.randbelow(2**32) if self.params.seed is None else self.params.seed
            for number in range(self.per_prompt):
                drawing = Drawing(row, seed + number, files[row * self.per_prompt + number])
                if self.naming.resume and drawing.file.exists():
                    self._check_there(drawing)
                    there.append(drawing.file)
                else:
                    drawings.append(drawing)
        first = 1 if count == 1 and self.naming.first is None else int(files[0].stem.rpartition("-")[2])
        self.check_plot(files)
        return replace(self, drawings=tuple(drawings), there=tuple(there), first=first, asked=asked)

    def check_plot(self, files: Iterable[Path]) -> None:
        """RequestError if the plot is to be where one of the `files` goes that are made."""
        plot = self.shown.plot
        if plot is not None and _place(plot) in map(_place, files):
            raise RequestError(f"--plot {plot} is where a picture itself goes; choose another name", "plot")

    def params_of(self, drawing: Drawing) -> DiffusionParams:
        """What one picture is drawn with."""
        return replace(self.params, seed=drawing.seed, num_outputs_per_prompt=1)

    def _names(self, path: Path, count: int) -> list[Path]:
        naming = self.naming
        if count == 1 and naming.first is None:
            return [path] if naming.overwrite or naming.resume else free_names(path, 1)
        counted = naming.overwrite or naming.resume
        files = numbered(path, count, naming.first or (1 if counted else next_number(path)))
        taken = [file for file in files if file.exists()]
        if taken and not counted:
            raise RequestError(
                f"{taken[0]} is there already; leave out --first, or choose --overwrite or --resume", "first"
            )
        return files

    def _check_there(self, drawing: Drawing) -> None:
        """RequestError if the file of `drawing` is there and was made from something else."""
        settings, asked = read_settings(drawing.file), self.prompts[drawing.row]["prompt"]
        if settings.get("prompt") != asked:
            was = f"was drawn from {str(settings.get('prompt'))[:60]!r}, not from {asked[:60]!r}"
        elif self.params.seed is not None and settings.get("seed") != drawing.seed:
            was = f"has seed {settings.get('seed')}, not {drawing.seed}"
        else:
            return
        raise RequestError(
            f"{drawing.file} {was}: --resume needs the command of the first run, with the same prompts in the same "
            "order; or choose another -o",
            "resume",
        )


def _place(file: Path) -> Path:
    """Which entry of which folder is written, however it is spelled; a link is replaced and not followed."""
    return file.parent.resolve() / file.name


def plan(args: argparse.Namespace, stdin: TextIO) -> Job:
    """The job that the options ask for; RequestError or ConfigError where they make no sense."""
    from omnimuse.media.finished import suffixes

    args = completed(args)
    quality = read_compression(args.compression)
    naming = Naming(args.output, args.format, args.overwrite, args.resume, args.first, quality)
    _check_naming(naming)
    wanted = read_wanted(args, stdin)
    check_destination(named(naming, "image"), (*suffixes(), WRITTEN))
    if args.plot is not None:
        check_place("plot", args.plot, KINDS, args.overwrite)
    if args.profile is not None:
        check_place("profile", args.profile, (".gz",), args.overwrite)
    args.model = args.model or DEFAULT_MODEL
    return Job(
        config=with_pools(args, read_config(args)),
        prompts=wanted.prompts,
        params=wanted.params,
        naming=naming,
        shown=Shown(args.preview, args.json, args.quiet, args.plot, args.profile),
        words=args.words,
        given=args.given,
        terms=wanted.terms,
    )


def read_wanted(args: argparse.Namespace, stdin: TextIO) -> Wanted:
    """What is drawn, by the options of `add_picture_options`: all the commands that draw ask so."""
    from omnimuse.media.clip import open_changed, open_film_mask
    from omnimuse.media.picture import open_mask, open_picture
    from omnimuse.media.recording import open_sound

    if args.number < 1:
        raise RequestError(f"-n {args.number} makes no picture; use at least 1", "num_outputs_per_prompt")
    shared: dict[str, Any] = {} if args.negative is None else {"negative_prompt": args.negative}
    if args.image:
        shared["images"] = [open_picture(path) for path in args.image]
    if args.mask is not None:
        frames = read_params(args).num_frames
        shared["mask"] = open_film_mask(args.mask, frames) if args.video else open_mask(args.mask)
    if args.pad is not None:
        shared["pad"] = read_pad(args.pad)
    began = [] if args.start is None else [f"start={args.start}"]  # a parameter of the families that know it
    if args.video:
        shared["videos"] = [open_changed(path, read_params(args).num_frames) for path in args.video]
    if args.audio:
        shared["sounds"] = [open_sound(path) for path in args.audio]
    said = read_prompts([*args.prompts, *args.prompt], args.file, stdin, needed=not args.image)
    prompts = [{"prompt": text, **shared} for text in said]
    params = with_settings(read_params(args), [*args.set, *began])
    return Wanted(prompts, params, Terms(args.adjust, args.cfg_scale, args.quality, read_deadline(args.deadline)))


def named(naming: Naming, medium: str) -> Path:
    """Where the file of an output of `medium` goes; RequestError where its name and `format` say different things."""
    usual, wanted = Path(NAMES[medium]), naming.format
    asked = destination(naming.output, str(usual if wanted is None else usual.with_suffix(f".{wanted}")))
    if wanted is not None and asked.suffix.lower() != f".{wanted}":
        raise RequestError(
            f"--format {wanted} and the name {asked.name} say different things; leave one out", "output_format"
        )
    return asked


def _check_naming(naming: Naming) -> None:
    if naming.overwrite and naming.resume:
        raise RequestError("--overwrite makes every picture anew and --resume keeps those there; choose one", "resume")
    if naming.format is not None and not re.fullmatch(r"[a-z0-9]{1,8}", naming.format):
        raise RequestError(f"--format {naming.format!r} is no suffix; write it like flac", "output_format")
    if naming.first is not None and naming.first < 0:
        raise RequestError(f"--first {naming.first} is no number of a file; use 0 or more", "first")


def read_params(args: argparse.Namespace) -> DiffusionParams:
    """The parameters that have options of their own."""
    width, height = read_size(args.size)
    for name, said in (("width", args.width), ("height", args.height)):
        if args.size is not None and said is not None:
            raise RequestError(f"--size {args.size} and --{name} {said} both choose the {name}; leave one out", name)
    return DiffusionParams(
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        guidance_scale_2=args.guidance_scale_2,
        true_cfg_scale=args.true_cfg_scale,
        height=height if args.height is None else args.height,
        width=width if args.width is None else args.width,
        num_frames=args.frames,
        fps=args.fps,
        seconds=args.seconds,
        seed=args.seed,
        num_outputs_per_prompt=args.number,
        max_sequence_length=args.max_sequence_length,
        strength=args.strength,
        flow_shift=args.flow_shift,
        boundary_ratio=args.boundary_ratio,
        scheduler=args.scheduler,
        loras=read_adapters(args.lora),
    )


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """`128x96` -> width 128 and height 96, in pixels."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,6})[xX×*](\d{1,6})", text.strip(), re.ASCII)
    if match is None:
        raise RequestError(f"--size {text} is not WIDTHxHEIGHT in pixels; write it like 128x128", "size")
    return int(match[1]), int(match[2])


def read_compression(words: str | None) -> int | None:
    """`80` or one of the words of `COMPRESSION`: a quality from 1 to 100, or None for the usual one."""
    if words is None or words in COMPRESSION:
        return None if words is None else COMPRESSION[words]
    if not re.fullmatch(r"\d{1,3}", words, re.ASCII) or not 1 <= int(words) <= 100:
        raise RequestError(
            f"--compression {words} is not allowed; use a number from 1 to 100, or {', '.join(COMPRESSION)}",
            "compression",
        )
    return int(words)


def read_pad(text: str) -> list[int]:
    """`64,0,64,0` -> what is added on the left, above, on the right and below, in pixels."""
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\s*\d{1,6}\s*", part, re.ASCII) for part in parts):
        raise RequestError(f"--pad {text} is not LEFT,TOP,RIGHT,BOTTOM in pixels; write it like 64,0,64,0", "pad")
    return [int(part) for part in parts]


def with_settings(params: DiffusionParams, pairs: list[str]) -> DiffusionParams:
    """`params` with NAME=VALUE pairs set: fields of every model by name, all others as the family's own parameters."""
    settings = read_pairs(pairs)
    ours = {part.name for part in fields(params)} - {"extra"}
    for name in ours & settings.keys():
        option = option_of(name)
        if name == "output_type":
            raise RequestError(
                "--set output_type cannot be chosen here: the command line saves pictures, videos and sounds; "
                "tensors are for Python, Omni(...).generate(..., DiffusionParams(output_type=...))",
                name,
            )
        if name == "num_outputs_per_prompt" or getattr(params, name) is not None:
            raise RequestError(f"--set {name} and {option} choose the same; use {option}", name)
    chosen = {name: value for name, value in settings.items() if name in ours}
    family = {name: value for name, value in settings.items() if name not in ours}
    return replace(params, **chosen, extra=family or None)


def read_pairs(pairs: list[str]) -> dict[str, Any]:
    """`["strength=0.5"]` -> `{"strength": 0.5}`; values are JSON, anything else is text. The last of a name counts."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given or not name.strip():
            raise RequestError(f"--set {pair} is not NAME=VALUE; write it like max_sequence_length=256", "set")
        try:
            settings[name.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            settings[name.strip()] = value
    return settings
