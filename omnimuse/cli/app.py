"""`main`: finds the command, reads its options, and turns errors into one clean message and an exit code.

Exit codes: 0 done, 1 something failed, 2 the input or a choice is wrong, 130 interrupted by Ctrl-C. A command is a
module beside this one with `add_options(parser)` and `run(args) -> int`, imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType
from typing import NoReturn

from omnimuse.core.errors import ConfigError, OmnimuseError, RequestCancelled, RequestError

COMMANDS = MappingProxyType(
    {
        "generate": "draw pictures, or make videos, from prompts",
        "models": "what is supported, and what is on this machine",
        "explain": "what would be chosen for a model, and why",
        "bench": "measure a running server",
        "serve": "serve a model over HTTP, with a page to try it",
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

`omnimuse COMMAND --help` tells a command's options, `omnimuse --version` the version.
Every command takes --debug, which shows where an error came from."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports like the rest of omnimuse: what is wrong, and the nearest right thing."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for anything wrong on the command line."""
        raise RequestError(f"{sentence(message)} `{self.prog} --help` tells the options")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options in `words`; an unknown one is refused with the nearest known one."""
        args, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            known = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", self.format_help())
            self.error(f"unknown option {unknown[0]}.{nearest(unknown[0].split('=')[0], known)}")
        return args


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
    try:
        return dispatch(words)
    except KeyboardInterrupt:
        print("omnimuse: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        report(error, as_json="--json" in words)
        return exit_code(error)


def dispatch(words: Sequence[str]) -> int:
    """Run the command that `words` begin with."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        from omnimuse import __version__

        print(f"omnimuse {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        hint = nearest(name, list(COMMANDS))
        raise RequestError(f"unknown {what} {name!r}.{hint} The commands are {', '.join(COMMANDS)}")
    command = import_module(f"omnimuse.cli.{name}")
    parser = Parser(
        prog=f"omnimuse {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_options(parser)
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    return int(command.run(parser.read(words[1:])))


def exit_code(error: Exception) -> int:
    """2 where other input would do, 1 for everything else."""
    wrong_input = isinstance(error, ConfigError | RequestError) and not isinstance(error, RequestCancelled)
    return 2 if wrong_input else 1


def report(error: Exception, as_json: bool) -> None:
    """Say on stderr what went wrong; with `--json`, as an object on stdout, too."""
    expected = isinstance(error, OmnimuseError | OSError)
    message = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
    hint = "" if expected else "\nThis is a fault in omnimuse; --debug shows where."
    print(f"omnimuse: {message}{hint}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": describe(error)}))


def describe(error: Exception) -> dict[str, str | None]:
    """An error as JSON: its kind, its message and, for a request, the field that is wrong."""
    param = error.param if isinstance(error, RequestError) else None
    return {"kind": type(error).__name__, "message": str(error), "param": param}
