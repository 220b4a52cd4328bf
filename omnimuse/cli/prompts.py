"""The prompts of `omnimuse generate`: from its arguments, from stdin, from a file.

A file of prompts, or what comes from stdin, has one prompt a line; empty lines, and lines that begin with #, are left
out (a prompt that begins so is written \\#). A byte order mark in front belongs to no prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from omnimuse.core.errors import RequestError, reason

_MARK = "\ufeff"


NONE = 'there is no prompt; write one, such as omnimuse generate "a red circle"'


def read_prompts(words: list[str], file: Path | None, stdin: TextIO, *, needed: bool) -> list[str]:
    """The prompts from the arguments (`-` stands for the lines of stdin), then those from `file`.

    Where none is `needed` for all that is known so far, an empty one stands for none.
    """
    prompts: list[str] = []
    for word in words:
        prompts += _lines(_stdin(stdin)) if word == "-" else [word]
    if file is not None:
        try:
            prompts += _lines(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read prompts from {file}: {_why(error)}", "file") from None
    if not prompts and not needed:
        return [""]
    if not prompts:
        raise RequestError(NONE, "prompt")
    if any(not prompt.strip() for prompt in prompts):
        raise RequestError("a prompt is empty; say what to draw", "prompt")
    return prompts


def _stdin(stdin: TextIO) -> str:
    try:
        return stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError(f"cannot read prompts from stdin: {_why(error)}", "prompt") from None


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line} is not {error.encoding.upper()} text; save it as UTF-8"
    return reason(error)


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.removeprefix(_MARK).split("\n"))
    return [line[1:] if line.startswith("\\#") else line for line in lines if line and not line.startswith("#")]
