"""The command line of SGLang Diffusion: `python -m omnimuse.compat.sglang generate --model-path ... --prompt ...`.

Every option and sampling parameter that it documents is a flag; `serve` is ours under another name, and says which.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.composed.sampling import OPTIONS, SAMPLING
from omnimuse.compat.sglang.runtime.entrypoints.caching import cache_of_variables
from omnimuse.compat.sglang.runtime.entrypoints.diffusion_generator import DiffGenerator
from omnimuse.core.bounds import object_in
from omnimuse.core.caches import OFF
from omnimuse.core.errors import ConfigError, OmnimuseError, reason

WORDS = {"true": True, "false": False, "null": None, "none": None}
SERVED: Mapping[str, str] = {
    "tp_size": "--tensor-parallel-size",
    "ulysses_degree": "--ulysses-degree",
    "ring_degree": "--ring-degree",
    "host": "--host",
    "port": "--port",
    "plugin": "--plugin",
    "device": "--device",
}
"""Flags of `serve` that are only called otherwise here."""


def value_of(text: str) -> Any:
    """A number, true, false or none, where `text` is one; else itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """What is to be done, and every name that was given; those of the command line are over those of `--config`."""
    parser = argparse.ArgumentParser("python -m omnimuse.compat.sglang", description=__doc__, allow_abbrev=False)
    parser.add_argument("verb", choices=("generate", "serve"))
    parser.add_argument("--config", help="a JSON file of names and values")
    parser.add_argument("--no-save-output", dest="save_output", action="store_const", const="false")
    for name, meaning in {**OPTIONS, **SAMPLING}.items():
        about = f"not taken: {meaning.refused}" if meaning.refused else meaning.about
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, nargs="?", const="true", default=None, help=about.replace("%", "%%"))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    verb, path = given.pop("verb"), given.pop("config", None)
    texts = {"prompt", "negative_prompt", "output_file_name", "output_path", "prompt_path", "model_path", "plugin"}
    chosen = {name: text if name in texts else value_of(text) for name, text in given.items()}
    return verb, {**(_of_file(Path(path)) if path else {}), **chosen}


def _of_file(path: Path) -> dict[str, Any]:
    if path.suffix != ".json":
        raise ConfigError(f"--config {path} is not read here: give a file of JSON, whose name ends in .json")
    try:
        found = object_in(path.read_bytes())
    except OSError as problem:
        raise ConfigError(f"--config {path} cannot be read: {reason(problem)}") from None
    if found is None:
        raise ConfigError(f"--config {path} holds no JSON object; give one of names and values")
    return found


def generate(given: Mapping[str, Any]) -> list[str]:
    """Draw what was asked for; the files that were written."""
    options = {name: value for name, value in given.items() if name not in SAMPLING}
    with DiffGenerator.from_pretrained(**options) as generator:
        chosen = {name: value for name, value in given.items() if name in SAMPLING and name != "return_frames"}
        made = generator.generate(sampling_params_kwargs=chosen)
    return [str(each["output_file_path"]) for each in (made if isinstance(made, list) else [made])]


def serving(given: Mapping[str, Any]) -> str:
    """The command line of ours that serves the same; ConfigError for a flag that is called nothing there."""
    left = sorted(set(given) - set(SERVED) - {"model_path", "num_gpus", "pin_cpu_memory"})
    if left:
        raise ConfigError(f"{', '.join(left)}: `omnimuse serve --help` has the flags of the server; docs/compat.md")
    flags = [part for name, flag in SERVED.items() if name in given for part in (flag, str(given[name]))]
    if (cache := cache_of_variables()) != OFF:
        flags += ["--cache", str(cache)]
    return " ".join(["omnimuse serve", str(given.get("model_path", "MODEL")), *flags])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; 2 where it is refused, with the reason on stderr."""
    try:
        verb, given = read(sys.argv[1:] if arguments is None else arguments)
        if verb == "serve":
            raise ConfigError(f"the server is started with: {serving(given)}")
        for file in generate(given):
            print(file)
    except OmnimuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
