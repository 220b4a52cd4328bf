"""Command lines that are worth running after this one, and the way back: from a file's settings to options.

`job.py` calls `completed` for `--from FILE`; `outcome.py` prints what `same`, `more` and `the_rest` make. What is
printed can be pasted into a shell as it is.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from omnimuse.cli.app import option_of, read_options
from omnimuse.cli.engine import NOTHING, RANKS, engine_names, read_files
from omnimuse.core.errors import RequestError
from omnimuse.core.loras import MOST_LORAS, Lora, loras_of

LONGEST = 110
"""Characters of a line that says everything itself; a longer one lets the file speak."""

NOT_THE_PICTURE = frozenset(
    {
        "seed",
        "number",
        "prompt",
        "file",
        "source",
        "deadline",
        "json",
        "quiet",
        "plot",
        "profile",
        "preview",
        "overwrite",
        "resume",
        "first",
        "debug",
    }
)
"""Options that do not belong to how a picture is drawn; its seed comes from the picture."""

OF_THE_RUN = ("--plot", "--profile")
"""Options that name a file which tells of this run."""

_HERE = frozenset(
    {
        "dtype",
        "device",
        "offload",
        "offload_folder",
        "threads",
        "company",
        "max_run",
        "deadline_class",
        "room",
        "component",
        "plugin",
        "writer_python",
        "use_hsdp",
        "elastic",
        "rank_wait",
        "deploy",
        "strategy",
        *(axis for axis, *_ in RANKS if axis != "vae_tiles"),
    }
)  # dtype is told apart; the others say where and how, change no picture, as tiles do. None says what else is read
_OPTIONS = (
    "num_inference_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale", "width", "height", "num_frames",
    "fps", "seconds", "strength", "flow_shift", "boundary_ratio", "scheduler", "max_sequence_length",
    "negative_prompt", "seed", "model", "dtype",
)  # fmt: skip
_NOT_IN_THE_FILE = (
    "image", "mask", "video", "audio", "lora", "component", "plugin", "writer_python", "deploy", "strategy", "output",
    "compression",
)  # fmt: skip


# -- from a file to options -----------------------------------------------------------------------------------------


def completed(args: argparse.Namespace) -> argparse.Namespace:
    """`args` with what the settings in the file of `--from` say: the command line counts before them, they before the
    environment.
    """
    if args.source is None:
        return args
    settings = read_settings(args.source)
    worn = [] if args.lora else _bundled(settings.get("loras"))
    words = [*words_of(settings, args.source), *(f"--lora={lora}" for lora in worn)]
    _check_apart({**settings, "loras": None} if worn else settings, args)
    if args.size is not None:
        words = [word for word in words if not word.startswith(("--width=", "--height="))]
    if args.quality is not None:
        words = [word for word in words if not word.startswith(f"{option_of('num_inference_steps')}=")]
    whole = read_options("generate", [*words, *args.words])
    if not whole.prompts and not whole.prompt and whole.file is None:
        text = _text(settings, "prompt", args.source)
        whole.prompts = [text] if text else []  # of a model that reads none
    return whole


def _check_apart(settings: Mapping[str, Any], args: argparse.Namespace) -> None:
    """RequestError where the command line does not say what a file was made with that is not in it."""
    for name, apart in _APART.items():
        said, given = settings.get(name), getattr(args, apart.option)
        if name == "files" and isinstance(said, Mapping) and given != [NOTHING]:
            said, given = {part: file for part, file in said.items() if part not in read_files(given)}, None
        if said and not given:
            named = apart.named(said)[:MOST_LORAS]
            what = apart.what.format(f" ({', '.join(named)})" if named else "")
            like = f" ({', '.join(found)})" if name == "loras" and (found := _like(settings)) else ""
            raise RequestError(f"{args.source} was {what}{like}{apart.without}", apart.option)


def _worn(loras: object) -> list[str]:
    """What settings say of adapters, by name and scale; nothing where they say it otherwise than we do."""
    return [f"{each.get('name')!r:.80} at {each.get('scale')!r:.20}" for each in _listed(loras, dict)]


def _files(files: object) -> list[str]:
    """The same of files, by the components that they are for."""
    return [f"{part!s:.40}={file!s:.80}" for part, file in files.items()] if isinstance(files, Mapping) else []


def _packages(plugins: object) -> list[str]:
    return [f"{each:.80}" for each in _listed(plugins, str)]


def _listed(said: object, kind: type) -> list[Any]:
    return [each for each in said if isinstance(each, kind)] if isinstance(said, list) else []


def _bundled(loras: object) -> Sequence[Lora]:
    """The adapters that settings name, where each of them comes with a demo model, so that it is here, too."""
    try:
        found = loras_of(loras) or ()
    except RequestError:
        return ()
    return found if all(lora.bundled for lora in found) else ()


def _like(settings: Mapping[str, Any]) -> list[str]:
    """Options for those that come with the model and are called as what was worn."""
    from omnimuse.loader.adapter_file import find_file

    found = []
    for each in _listed(settings.get("loras"), dict):
        try:
            [lora] = loras_of(each | {"name": f"{settings.get('model')}/{PurePath(str(each.get('name'))).stem}"}) or ()
            if lora.bundled:
                find_file(lora.source)
                found.append(f"--lora {quoted_word(str(lora))}")
        except RequestError:
            continue
    return found


class Apart(NamedTuple):
    """What a picture was made with that is not in its file: the option that gives it, in words, what names it in
    settings, and how to do without.
    """

    option: str
    what: str
    named: Callable[[object], list[str]] = lambda said: []
    without: str = ""


_APART: Mapping[str, Apart] = MappingProxyType(
    {
        "images": Apart("image", "drawn from a picture, which is not in it; give it with --image"),
        "mask": Apart("mask", "drawn with a mask, which is not in it; give it with --mask"),
        "videos": Apart("video", "made from a video, which is not in it; give it with --video"),
        "sounds": Apart("audio", "made from a sound, which is not in it; give it with --audio"),
        "loras": Apart(
            "lora",
            "drawn with adapters{}, which are not in it; give them with --lora",
            _worn,
            f", or draw without by --lora {NOTHING}",
        ),
        "files": Apart(
            "component",
            "drawn with weights of other files{}, which are not in it; give them with --component NAME=FILE",
            _files,
            f", or draw with the model's own by --component {NOTHING}",
        ),
        "plugins": Apart("plugin", "drawn by packages{}, which are not in it; name them with --plugin", _packages),
    }
)
"""By the name of the setting that tells of it."""


def read_settings(file: Path) -> dict[str, Any]:
    """The settings inside a picture, a video or a sound; RequestError where there are none."""
    from omnimuse.media.finished import read_settings as read

    return read(file)


def words_of(settings: Mapping[str, Any], file: Path) -> list[str]:
    """The options that say what `settings` say. The device is left out: it may be another one here."""
    said = {name: settings[name] for name in _OPTIONS if settings.get(name) is not None}
    if "+" in str(said.get("dtype")):
        del said["dtype"]  # pools of several number formats made it: a deploy file says which
    words = [f"{option_of(name)}={value}" for name, value in said.items()]
    if pad := settings.get("pad"):
        words.append(f"--pad={','.join(map(str, pad if isinstance(pad, list) else [pad]))}")
    words += [f"--set={name}={json.dumps(value)}" for name, value in _mapping(settings, "extra", file).items()]
    engine, known = dict(_mapping(settings, "engine", file)), engine_options()
    if (cache := settings.get("cache")) is not None:  # of one request of a server, or of a script
        engine.pop("teacache", None)
        engine["cache"] = cache
    for name, value in engine.items():
        if name not in known:  # whoever made the file must not choose where files go, or what else is read
            raise RequestError(f"the settings in {file} have the option {name!r}, which chooses no engine", "from")
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}" if one is True else f"--{name}={one}" for one in values]
    return words


def engine_settings(given: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """What a file must know of the engine that drew it besides dtype and device: the options that were given."""
    values: dict[str, list[Any]] = {
        name.replace("_", "-"): list(words[1::2]) or [True] for name, words in given.items()
    }
    said = {name: values[name] for name in engine_options() if name in values}
    return {name: several if len(several) > 1 else several[0] for name, several in said.items()}


def engine_options() -> list[str]:
    """The options that choose how an engine computes, and not where: as they are written, without dashes."""
    return [name.replace("_", "-") for name in engine_names() if name not in _HERE]


def _mapping(settings: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    found = settings.get(name) or {}
    if not isinstance(found, Mapping):
        raise RequestError(f"the settings in {file} have {name}={found!r}, which is no set of names and values", "from")
    return found


def _text(settings: Mapping[str, Any], name: str, file: Path) -> str:
    found = settings.get(name)
    if not isinstance(found, str):
        raise RequestError(f"the settings in {file} have no {name}; write one", name)
    return found


# -- from a job to command lines ------------------------------------------------------------------------------------


def same(prompt: str, given: Mapping[str, tuple[str, ...]], file: str, seed: int) -> str:
    """The command that makes the file again."""
    return _line(prompt, given, file, ["--seed", str(seed)], ())


def more(prompt: str, given: Mapping[str, tuple[str, ...]], file: str, seed: int) -> str:
    """The command that makes four others: those after `seed`, the last that is known."""
    return _line(prompt, given, file, [], ["-n", "4", "--seed", str(seed + 1)])


def explained(model: str, given: Mapping[str, tuple[str, ...]]) -> str:
    """The command that tells what was chosen for the model, and why."""
    said = [word for name in engine_names() for word in given.get(name, ())]
    return " ".join(["omnimuse explain", *map(quoted_word, [model, *said])])


def the_rest(words: Sequence[str], first: int) -> str:
    """The command that makes what a run of `words` (the prompts among them) has left over. What that run has told of
    itself stays as it is: a file of its times is not written again.
    """
    number = [] if first == 1 or "--first" in words else ["--first", str(first)]
    kept, before = list[str](), ""
    for word in words:
        if before not in OF_THE_RUN and word.partition("=")[0] not in (*OF_THE_RUN, "--resume"):
            kept.append(word)
        before = word
    line = shlex.join(["omnimuse", "generate", *kept, "--resume", *number])
    return f"{line}    # with the same lines on stdin" if "-" in words else line


def _line(
    prompt: str, given: Mapping[str, tuple[str, ...]], file: str, short: Sequence[str], both: Sequence[str]
) -> str:
    """All said by options (with `short`) if that fits on a line, else by the file; with `both` in either case."""
    said = [word for name, words in given.items() if name not in NOT_THE_PICTURE for word in words]
    text = ["--prompt=" + prompt] if prompt.startswith("-") else []
    shown = quoted(prompt) if not text else shlex.join(text)
    line = " ".join(["omnimuse generate", shown, *map(quoted_word, [*said, *short, *both])])
    if len(line) <= LONGEST and "\n" not in line:
        return line
    kept = [word for name in _NOT_IN_THE_FILE for word in given.get(name, ())]
    return " ".join(["omnimuse generate --from", *map(quoted_word, [file, *kept, *both])])


def quoted(text: str) -> str:
    """`text` in quotes, for a shell."""
    return shlex.quote(text) if any(mark in text for mark in '"$`\\!') else f'"{text}"'


def quoted_word(word: str) -> str:
    """`word` as it is where a shell takes it so, else in quotes."""
    return word if shlex.quote(word) == word else quoted(word)
