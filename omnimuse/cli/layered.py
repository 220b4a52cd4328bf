"""Options from four places: the command line counts before the environment, that before a file, that before defaults.

Every command is read this way (`cli/app.py`). There is no second list of options: what a file and the environment may
set, and as what, is read off the parser. Of a command with `--config` it is everything, of others that start or explain
an engine what chooses that.
"""

from __future__ import annotations

import argparse
import logging
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from omnimuse.cli.engine import SAID_IN, engine_names
from omnimuse.core.errors import ConfigError, RequestError, reason

logger = logging.getLogger(__name__)

CONFIG = "config"
SAID = "said"
"""Where the options have what was not given on the command line: by its source, the values."""
ALTERNATIVES = (frozenset({"cache", "teacache"}),)
"""Destinations of which one is chosen: what counts before the others has no other beside it."""
OF_THE_COMMAND_LINE = frozenset({"help", "debug", CONFIG})
"""Options that are about the command line itself; the file can be named in the environment, too."""
YES, NO = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
OTHERS = frozenset({"CONFIG", "FAULT", "VLLM_PYTHON", "API_KEY"})
"""Names behind `OMNIMUSE_` that are no options: this file's, of tests, of clients that the page tells how to call."""
OF_THE_BUILD = "dtype"
"""What `auto` means for it, the build reads in the environment itself, whoever starts an engine."""


class Reader(Protocol):
    """A parser of one command, as `cli/app.py` has it."""

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options in `words`."""

    def actions(self) -> list[argparse.Action]:
        """Everything that can be given, positions included."""

    def given_in(self, args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
        """By destination, the words of every option that is not at its default."""


@dataclass(frozen=True)
class Option:
    """One thing that can be set: its name in a file, the word that sets it on a command line, and what it takes."""

    name: str
    word: str
    dest: str
    kind: type = str
    flag: bool = False
    many: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment, behind `OMNIMUSE_`."""
        return self.name.replace("-", "_").upper()

    @property
    def takes(self) -> str:
        """What a file may say for it, in words."""
        if self.flag:
            return "true or false"
        one = {int: "a whole number", float: "a number"}.get(self.kind, "text")
        return f"a list of {one}" if self.many else one

    def words(self, value: object) -> list[str]:
        """The words of a command line that say `value`, as TOML read it; ValueError where it is of another kind."""
        if self.flag:
            if not isinstance(value, bool):
                raise ValueError(self.takes)
            return [self.word] if value else []
        values = value if self.many and isinstance(value, list) else [value]
        kinds = {int: (int,), float: (int, float)}.get(self.kind, (str,))
        if any(isinstance(one, bool) or not isinstance(one, kinds) for one in values):
            raise ValueError(self.takes)
        return [f"{self.word}={one}" if self.word else str(one) for one in values]

    def read(self, text: str) -> object:
        """What a variable of the environment says, as TOML would have it; ValueError where it makes no sense."""
        if self.flag:
            if text.lower() not in YES | NO:
                raise ValueError("1 or 0")
            return text.lower() in YES
        if self.many:
            return [part.strip() for part in text.split(",") if part.strip()]
        try:
            return self.kind(text) if self.kind in (int, float) else text
        except ValueError:
            raise ValueError(self.takes) from None


def options_of(parser: Reader) -> dict[str, Option]:
    """Everything that a file and the environment may set, by its name in a file."""
    known = {action.dest for action in parser.actions()}
    options = _all_of(parser)
    if CONFIG in known:
        return options
    engine = set(engine_names()) - {OF_THE_BUILD} if OF_THE_BUILD in known else ()
    return {name: option for name, option in options.items() if option.dest in engine}


def _all_of(parser: Reader) -> dict[str, Option]:
    found = {}
    for action in parser.actions():
        word = action.option_strings[-1] if action.option_strings else ""
        name = word.lstrip("-") or action.dest
        if name not in OF_THE_COMMAND_LINE:
            kind = action.type if isinstance(action.type, type) else str
            many = isinstance(action.default, list)
            found[name] = Option(name, word, action.dest, kind, action.nargs == 0, many)
    return found


def read_layered(
    parser: Reader, quiet: Reader, words: Sequence[str], environment: Mapping[str, str]
) -> argparse.Namespace:
    """The options of all four places; `environment` is what is set behind `OMNIMUSE_`.

    `quiet` is the same parser without defaults: it tells what was given. ConfigError for what makes no sense.
    """
    args = parser.read(words)
    given = vars(quiet.read(words))
    options = options_of(parser)
    path = given.get(CONFIG, environment.get(CONFIG.upper())) if CONFIG in vars(args) else None
    file = _of_file(Path(path), options) if path is not None else {}
    there = _of_environment(environment, options)
    for dests in ALTERNATIVES:
        if any(dest in given for dest in dests):
            file, there = _without(dests, file), _without(dests, there)
        elif any(dest in there for dest in dests):
            file = _without(dests, file)
    layers = file | there
    ranks = (dict.fromkeys(each, rank) for rank, each in enumerate((file, there, given), 1))
    vars(args)[SAID], vars(args)[SAID_IN] = {}, dict(chain.from_iterable(each.items() for each in ranks))
    for dest, (source, said) in layers.items():
        if dest not in given:
            try:
                vars(args)[dest] = vars(quiet.read(said)).get(dest, vars(args)[dest])
            except RequestError as error:
                raise ConfigError(f"{source}: {error}") from None
            vars(args)[SAID][source] = [word.partition("=")[2] for word in said]
    args.given = parser.given_in(args)
    return args


def warn_of_others(environment: Mapping[str, str], *parsers: Reader) -> None:
    """Tell of what is set behind `OMNIMUSE_` and is no option of these commands. It may well be there: an orchestrator
    sets some such names of its own.
    """
    known = {option.variable for parser in parsers for option in options_of(parser).values()}
    for name in environment.keys() - known - OTHERS:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean OMNIMUSE_{near[0]}?" if near else ""
        logger.warning("OMNIMUSE_%s sets nothing here%s", name, hint)


def said_by(args: argparse.Namespace, message: str) -> str:
    """` (so says ...)` with the variables and the lines of a file whose values an error's `message` quotes, if any."""
    quoted = [
        source
        for source, values in vars(args).get(SAID, {}).items()
        if any(value and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", message) for value in values)
    ]
    return f" (so says {' and '.join(quoted)})" if quoted else ""


Layer = dict[str, tuple[str, list[str]]]
"""By destination: where it was said, and the words of a command line that say the same."""


def _without(dests: frozenset[str], layer: Layer) -> Layer:
    return {dest: said for dest, said in layer.items() if dest not in dests}


def _of_file(path: Path, options: Mapping[str, Option]) -> Layer:
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {path} is no TOML: {error}") from None
    return _layer(_checked(str(path), said, options))


def _checked(path: str, said: Mapping[str, Any], options: Mapping[str, Option]) -> Iterator[tuple[str, Option, Any]]:
    for written, value in said.items():
        name = written.replace("_", "-")
        if name in OF_THE_COMMAND_LINE:
            raise ConfigError(f"{path}: {name} belongs on the command line, not into a file")
        if name not in options:
            near = get_close_matches(name, options, n=1)
            hint = f" Did you mean {near[0]}?" if near else " `omnimuse serve --help` tells them."
            raise ConfigError(f"{path}: there is no option {name!r}.{hint}")
        yield f"{path}: {name}", options[name], value


def _of_environment(environment: Mapping[str, str], options: Mapping[str, Option]) -> Layer:
    known = {option.variable: option for option in options.values()}
    said = []
    for name, text in environment.items():
        if name in known:
            try:
                said.append((f"OMNIMUSE_{name}", known[name], known[name].read(text)))
            except ValueError as error:
                raise ConfigError(f"OMNIMUSE_{name}={text!r} is not understood; use {error}") from None
    return _layer(said)


def _layer(said: Iterable[tuple[str, Option, Any]]) -> Layer:
    """What was said, by destination; two options of one destination contradict each other."""
    found: Layer = {}
    for source, option, value in said:
        try:
            words = option.words(value)
        except ValueError as error:
            raise ConfigError(f"{source}={value!r} is not understood; use {error}") from None
        if option.flag and not words and option.dest != option.name.replace("-", "_"):
            continue  # the short form of another option, not wanted
        if option.dest in found:
            raise ConfigError(f"{source} and {found[option.dest][0]} say the same thing twice; keep one of them")
        found[option.dest] = source, words
    return found
