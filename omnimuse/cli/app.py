"""`main`: finds the command, reads its options, and turns errors into one clean message and an exit code.

Exit codes: 0 done, 1 something failed, 2 the input, the model or a choice is wrong, 130 interrupted by Ctrl-C,
143 ended by SIGTERM. A command is a module beside this one with `add_options(parser)` and `run(args) -> int`, imported
only when it is asked for.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from omnimuse.cli.layered import read_layered, said_by, warn_of_others
from omnimuse.core.environment import Environment
from omnimuse.core.errors import FULL, ConfigError, ModelError, OmnimuseError, RequestCancelled, RequestError, reason
from omnimuse.core.names import MEANINGS, absent, meant

COMMANDS = MappingProxyType(
    {
        "generate": "draw pictures, or make videos, from prompts",
        "chat": "talk to a model that writes",
        "speak": "say a text aloud with a model that speaks",
        "models": "what is supported, and what is on this machine",
        "warm": "compile a model's blocks now, so that engines with --compile start fast",
        "explain": "what would be chosen for a model, and why",
        "convert": "make a checkpoint folder from a single file",
        "quantize": "pack a model's weights into fewer bits, into a new folder",
        "new-model": "begin a family of models in a checkout",
        "parity": "compare a family with diffusers, part by part",
        "calibrate": "measure a model for its step caches",
        "bench": "measure a running server",
        "simulate": "simulate a fleet of servers under load",
        "serve": "serve a model over HTTP, with a page to try it",
        "worker": "run ranks for a server on another machine",
        "doctor": "check this installation and say what to do",
    }
)

HELP = f"""omnimuse turns prompts into pictures and videos with diffusion transformers.

usage: omnimuse COMMAND [options]

commands:
{chr(10).join(f"  {name:10}{summary}" for name, summary in COMMANDS.items())}

examples:
  omnimuse generate "a red circle on a blue background"
  omnimuse generate "a green star" "a white ring" -n 4 --seed 7 -o shapes.png
  omnimuse generate --file prompts.txt --size 128x128 --steps 8 --json
  omnimuse explain omnimuse/shapes
  omnimuse doctor

Without a command, `omnimuse --model MODEL` explains that model, with options such as --plugin PACKAGE.
`omnimuse COMMAND --help` tells a command's options, `omnimuse --version` the version.
Every command takes --debug, which shows where an error came from."""


OPTIONS = MappingProxyType(
    {
        "num_inference_steps": "--steps",
        "guidance_scale": "--guidance",
        "num_frames": "--frames",
        "num_outputs_per_prompt": "--number",
        "negative_prompt": "--negative",
        "images": "--image",
        "videos": "--video",
        "loras": "--lora",
    }
)
"""Options with shorter names than what they set; all others are called as it is."""
GIVEN = MappingProxyType(
    {
        "images": ("--image", "--picture"),
        "sounds": ("--audio", "--sound", "--like"),
        "videos": ("--video",),
        "ref_text": ("--like-text",),
    }
)
"""What comes with a prompt, and the options of commands that bring it."""


DOTTED = ("--attention.per_role.", ".backend")
"""What stands around a role in the long name of its backend."""
ELSEWHERE = "--diffusion-attention-config"
DEFAULTS = ("--attention.default", "--attention.default.backend")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports like the rest of omnimuse: what is wrong, and the nearest right thing.

    It takes the names of `core/names.py` for our own, and hands on what it read: `words`, and in `given`, by
    destination, the words of every option that is not at its default.
    """

    def error(self, message: str) -> NoReturn:
        """Called by argparse for anything wrong on the command line."""
        raise RequestError(f"{sentence(message)} `{self.prog} --help` tells the options")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options in `words`; an unknown one is refused with the nearest known one."""
        words = [ours for word in self._flat(words) for ours in self._ours(word)]
        self._check(words)
        args, unknown = self.parse_known_intermixed_args(free := self._freed(words))
        if unknown and free != words:  # it was a wrong value after all
            args, unknown = self.parse_known_intermixed_args(words)
        if unknown and unknown[0].startswith("-"):
            self.error(f"unknown option {unknown[0]}.{self._hint(unknown[0].split('=')[0])}")
        if unknown:
            taken = [str(action.metavar or action.dest) for action in self._actions if not action.option_strings]
            self.error(f"{unknown[0]!r:.80} is a word too many: beside options come {', '.join(taken) or 'none'}.")
        args.words, args.given = tuple(words), self.given_in(args)
        return args

    def _check(self, words: Sequence[str]) -> None:
        """Refuse a long option that is not known before what follows it is taken for something else."""
        for word in words[: words.index("--") if "--" in words else None]:
            name = word.split("=")[0]
            if name.startswith("--") and " " not in word and name not in self._option_string_actions:
                self.error(f"unknown option {name}.{self._hint(name)}")

    def _freed(self, words: Sequence[str]) -> list[str]:
        """`words`, in which an option that may stand alone has no word behind it that is none of its values: it is what
        stands in a position.
        """
        found = list(words)
        for at, (word, behind) in enumerate(pairwise(words)):
            action = self._option_string_actions.get(word)
            if action is None or action.nargs != "?" or not callable(action.type) or behind.startswith("-"):
                continue
            try:
                action.type(behind)
            except argparse.ArgumentTypeError:
                found[at] = f"{word}={action.const}"
        return found

    def actions(self) -> list[argparse.Action]:
        """Everything that can be given, positions included."""
        return list(self._actions)

    def _flat(self, words: Sequence[str]) -> list[str]:
        """`words`, with `--attention.per_role.ROLE.backend NAME` as what there is for it: `--attention-role ROLE=NAME`.

        It may begin with `--diffusion-attention-config`, too, as another engine has it.
        """
        found, rest = [], iter(words)
        for word in rest:
            if word.startswith(f"{ELSEWHERE}."):
                word = "--attention" + word.removeprefix(ELSEWHERE)
            name, given, value = word.partition("=")
            role = name.removeprefix(DOTTED[0]).removesuffix(DOTTED[1])
            if name in DEFAULTS:
                plain = "--attention="
            elif role and name == f"{DOTTED[0]}{role}{DOTTED[1]}":
                plain = f"--attention-role={role}="
            else:
                found.append(word)
                continue
            value = value if given else next(rest, "")
            if not value or value.startswith("-"):
                self.error(f"argument {name}: expected one argument")
            found.append(plain + value)
        return found

    def _ours(self, word: str) -> list[str]:
        """`word`, by our name where it is an option that other programs call otherwise; none where ours has no name."""
        name, given, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return [word]
        plain = name[2:].replace("-", "_")
        ours = MEANINGS.get(plain, plain)
        if option_of(ours) in self._option_string_actions:
            return [option_of(ours) + given + value]
        if any(action.dest == ours and not action.option_strings for action in self._actions):
            return [value] if given else []
        return [word]

    def _hint(self, name: str) -> str:
        """The commands that have the option `name`, ` Did you mean ...?` with the one that it may mean, or nothing."""
        if why := absent(name):
            return f" In omnimuse, {why}."
        if others := _elsewhere(name):
            here = [option for option in self._option_string_actions if option.startswith(f"{name}-")]
            return f" It is an option of {others}." + (f" Here there is {', '.join(here)}." if here else "")
        known = {option.strip("-").replace("-", "_"): option for option in self._option_string_actions}
        for ours in MEANINGS.values():
            if (option := option_of(ours)) in self._option_string_actions:
                known.setdefault(ours, option)
        near = meant(name, known)
        return f" Did you mean {known[near]}?" if near else ""

    def given_in(self, args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
        """By destination, the words of every option that is not at its default."""
        given: dict[str, tuple[str, ...]] = {}
        for action in self._actions:
            default = self.get_default(action.dest)
            value = vars(args).get(action.dest, default)
            if not action.option_strings or action.dest in given or value == default:
                continue
            if action.nargs == 0:
                if value == action.const:  # a short form of another option has one value of it
                    given[action.dest] = (action.option_strings[0],)
                continue
            values = value if isinstance(value, list) else [value]
            given[action.dest] = tuple(word for one in values for word in _said(action.option_strings, str(one)))
        return given


def named(word: str) -> Path:
    """The path that a word names. An empty one, as a variable that was never set leaves it, names none, though `Path`
    would take it for the folder that we are in.
    """
    if not word:
        raise argparse.ArgumentTypeError("an empty word names no file or folder; say which, or leave the option out")
    return Path(word)


def _elsewhere(option: str) -> str:
    """The commands that have `option`, and a comma between them."""
    having = (name for name in COMMANDS if any(option in action.option_strings for action in parser_of(name).actions()))
    return ", ".join(f"`omnimuse {name}`" for name in having)


def option_of(ours: str) -> str:
    """The option that sets what is called `ours`."""
    return OPTIONS.get(ours, "--" + ours.replace("_", "-"))


def _said(names: Sequence[str], value: str) -> tuple[str, ...]:
    """An option with its value, by its first name; one word where the value would look like an option."""
    return (f"{names[-1]}={value}",) if value.startswith("-") else (names[0], value)


def parser_of(name: str, *, quiet: bool = False) -> Parser:
    """The parser of the command `name`; a `quiet` one tells what was given, asks for nothing and has no defaults."""
    command = import_module(f"omnimuse.cli.{name.replace('-', '_')}")
    parser = Parser(
        prog=f"omnimuse {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.register("type", Path, named)
    command.add_options(parser)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.usage = usage(parser)
    if quiet:
        for action in parser.actions():
            action.default, action.required = argparse.SUPPRESS, False
    return parser


def read_options(name: str, words: Sequence[str]) -> argparse.Namespace:
    """The options of the command `name`: those in `words`, and what the environment (and a file) say of others."""
    return read_layered(parser_of(name), parser_of(name, quiet=True), words, Environment.options())


def usage(parser: Parser) -> str:
    """One line: what must be given, and what may stand beside options, which the help tells one by one."""
    words = [parser.prog, "[options]"]
    for action in parser.actions():
        name = str(action.metavar or action.dest)
        if not action.option_strings:
            words.append(
                {"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} [{name} ...]"}.get(str(action.nargs), name)
            )
        elif action.required:
            words.append(f"{action.option_strings[0]} {name}")
    return " ".join(words)


def nearest(word: str, known: Sequence[str]) -> str:
    """` Did you mean ...?` with the known word closest to `word`, or nothing."""
    near = get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def sentence(message: str) -> str:
    """The message, closed by a full stop where it is not closed."""
    return message if message.endswith((".", "?")) else f"{message}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show must not end the work
            stream.reconfigure(errors="backslashreplace")
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `omnimuse/__init__.py` has it while all is imported
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with terminable():
            return dispatch(words)
    except STOPS as stop:
        print(f"omnimuse: {stopped(stop)}", file=sys.stderr)
        return STOPPED[stopped(stop)]
    except BrokenPipeError:  # whoever read our output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        report(error, as_json="--json" in words)
        return exit_code(error)


class Terminated(SystemExit):
    """Whoever manages this process wants it to end (SIGTERM); what was begun is tidied up."""


STOPS = (KeyboardInterrupt, Terminated)
STOPPED = MappingProxyType({"interrupted": 130, "terminated": 143})
"""What ends a command before its end, by what is said of it: exit codes, as shells have them."""


def stopped(by: BaseException) -> str:
    """What is said of it."""
    return "terminated" if isinstance(by, Terminated) else "interrupted"


@contextmanager
def terminable() -> Iterator[None]:
    """While this lasts SIGTERM raises Terminated in the main thread; the second ends the process at once.

    Not in a rank of several, which may wait for others where it hears nothing, and not where somebody else listens.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated(STOPPED["terminated"])

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or not Environment.alone() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def dispatch(words: Sequence[str]) -> int:
    """Run the command that `words` begin with."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        from omnimuse import __version__

        print(f"omnimuse {__version__}")
        return 0
    if words[0].partition("=")[0] == "--model":
        return dispatch(["explain", *words])
    name = words[0]
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        hint = nearest(name, list(COMMANDS))
        raise RequestError(f"unknown {what} {name!r}.{hint} The commands are {', '.join(COMMANDS)}")
    command, parser = import_module(f"omnimuse.cli.{name.replace('-', '_')}"), parser_of(name)
    args = read_options(name, words[1:])
    if environment := Environment.options():
        warn_of_others(environment, parser, parser_of("serve"))
    try:
        return int(command.run(args))
    except ConfigError as error:
        raise ConfigError(f"{error}{said_by(args, str(error))}") from error
    except RequestError as error:
        if (message := by_options(str(error), parser)) == str(error):
            raise
        raise RequestError(message, error.param) from error


def by_options(message: str, parser: Parser) -> str:
    """`message`, in which what comes with a prompt, and what a family alone can be asked for, is called as the option
    that brings it.
    """
    known = {option: action.dest for action in parser.actions() for option in action.option_strings}
    for name, options in GIVEN.items():
        for option in known.keys() & options:
            message = message.replace(f"`{name}`", option)
    for option, name in known.items():
        if option == option_of(name):
            message = message.replace(f"`{name}`", option).replace(f"extra.{name}=", f"{option} ")
    return message


def exit_code(error: Exception) -> int:
    """2 where other input or another model would do, 1 for everything else."""
    wrong_input = isinstance(error, ConfigError | ModelError | RequestError) and not isinstance(error, RequestCancelled)
    return 2 if wrong_input else 1


def report(error: Exception, as_json: bool) -> None:
    """Say on stderr what went wrong; with `--json`, as an object on stdout, too."""
    expected = isinstance(error, OmnimuseError | OSError)
    message = told(error) if expected else f"unexpected {type(error).__name__}: {error}"
    hint = "" if expected else "\nThis is a fault in omnimuse; --debug shows where."
    print(f"omnimuse: {message}{hint}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": describe(error)}))


def told(error: Exception) -> str:
    """What is wrong, with the file that the system refused where there is one, and what helps a disk that is full."""
    if not isinstance(error, OSError):
        return str(error)
    full = "; free some space, or choose another place" if error.errno in FULL else ""
    return f"{reason(error)}: {error.filename}{full}" if error.filename else f"{reason(error)}{full}"


def describe(error: Exception) -> dict[str, str | None]:
    """An error as JSON: its kind, its message and, for a request, the field that is wrong."""
    param = error.param if isinstance(error, RequestError) else None
    return {"kind": type(error).__name__, "message": told(error), "param": param}
