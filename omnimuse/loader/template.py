"""The process that renders chat templates, and how one is rendered: as transformers does.

Run as `python -m omnimuse.loader.template` by `chat`. It bounds itself and locks itself in as the decoders of pictures
do (`media/confine.py`); questions come one after the other on standard input, a length and JSON each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omnimuse.media.confine import SOON, bound, lock_in

MEMORY = 2**28  # bytes of address space
MOST = 2**20  # characters of a text

_TRIAL = (
    "{% set n = namespace(a=1) %}{{ strftime_now('%Y') | tojson }}{% for m in messages %}{{ m.a | trim }}{% endfor %}"
)

_FAILURES = ("{% for %}", "{{ raise_exception('x') }}", "{{ messages.__class__ }}", "{{ none.x.y }}", "{{ 1 / 0 }}")


class _Generation(Extension):
    """`{% generation %}`, which marks what a model says; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - as the library declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives to templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    made.filters["tojson"] = _to_json
    made.globals.update(raise_exception=_raise, strftime_now=_now)
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def answer(question: dict[str, Any]) -> dict[str, str]:
    """The text of the question's template and values, or why there is none."""
    try:
        text = environment().from_string(question["source"]).render(question["values"])
    except (TemplateError, SyntaxError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    if len(text) > MOST:
        return {"error": f"its text has {len(text)} characters, at most {MOST} are allowed"}
    return {"text": text}


def main() -> None:
    """Answer questions until there are no more."""
    bound(MEMORY)
    for source in (_TRIAL, *_FAILURES):  # what each needs is loaded while it can be
        answer({"source": source, "values": {"messages": [{"a": " b"}]}})
    _say({"lacking": lock_in(SOON)})
    read = _reader()
    while (length := read(b"\n")) is not None:
        content = read(int(length))
        if content is None:
            return
        _say(answer(json.loads(content)))


def _reader() -> Callable[[bytes | int], bytes | None]:
    """Reads up to a mark, or so many bytes; None at the end."""
    held = bytearray()

    def read(wanted: bytes | int) -> bytes | None:
        while (len(held) < wanted) if isinstance(wanted, int) else (wanted not in held):
            piece = os.read(0, 2**16)
            if not piece:
                return None
            held.extend(piece)
        end = wanted if isinstance(wanted, int) else held.index(wanted) + len(wanted)
        found = bytes(held[:end])
        del held[:end]
        return found

    return read


def _say(said: object) -> None:
    left = memoryview(json.dumps(said).encode() + b"\n")
    while left:
        left = left[os.write(1, left) :]


if __name__ == "__main__":
    main()
    os._exit(0)  # what libraries do at the end may need calls that are refused now
