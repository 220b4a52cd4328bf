"""The text of a chat, by the template of a checkpoint: a program that anyone may have written.

A template that only joins what it is given costs what it is long, and is rendered here. Any other could loop for ever
or ask for a terabyte: it is rendered by `python -m omnimuse.loader.template`, a process that can do nothing else and is
ended when it takes too long. Used by `tokenizer`; no torch.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes

from omnimuse.core.errors import ModelError
from omnimuse.loader.template import MOST, environment
from omnimuse.media.sandbox import ENVIRONMENT

SECONDS = 5.0
"""What a text may take; a template of a real checkpoint takes some thousandths."""
STARTING = 60.0
COMMAND = (sys.executable, "-P", "-m", "omnimuse.loader.template")

_SHORT = 2**16
"""Characters of a template that is looked at here."""
_PLAIN = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.CondExpr, nodes.Name, nodes.Const),
    *(nodes.Getattr, nodes.Getitem, nodes.Add, nodes.Concat, nodes.Compare, nodes.Operand, nodes.And, nodes.Or),
    *(nodes.Not, nodes.Test, nodes.For, nodes.Filter, nodes.Break, nodes.Continue),
)
"""What a template may consist of to be rendered here: nothing that is remembered, multiplied or called."""
_FILTERS = ("trim", "upper", "lower", "length", "first", "last")


class Chat:
    """Renders one template; `where` says which, for messages. Ends its process, if it has one, when nobody has it."""

    def __init__(self, source: str, where: str, seconds: float = SECONDS) -> None:
        self._source, self._where, self._seconds = source, where, seconds
        self._plain = plain_template(source)
        self._process = None if self._plain is not None else _Process()

    def render(self, values: Mapping[str, Any]) -> str:
        """The text; ModelError if the template fails, takes too long or makes too long a text."""
        if self._plain is not None:
            return self._kept(self._plain, values)
        assert self._process is not None
        try:
            answer = self._process.ask({"source": self._source, "values": values}, self._seconds)
        except TimeoutError:
            why = f"takes more than {self._seconds:g} s"
            raise ModelError(f"the chat template of {self._where} {why}; use another checkpoint") from None
        except ConnectionError:
            why = "ended the process that rendered it, as one that asks for too much memory does"
            raise ModelError(f"the chat template of {self._where} {why}; use another checkpoint") from None
        if "text" not in answer:
            raise self._failed(str(answer.get("error"))[:500])
        return str(answer["text"])

    def _kept(self, template: Template, values: Mapping[str, Any]) -> str:
        try:
            return template.render(dict(values))
        except (TemplateError, TypeError, ValueError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error

    def _failed(self, why: str) -> ModelError:
        return ModelError(f"the chat template of {self._where} fails ({why}); use another checkpoint")


def plain_template(source: str) -> Template | None:
    """`source` to be rendered here: it only joins constants and what it is given, at most once for each message.

    None for any other, for a long one, and for one that is no template or too nested to tell: its process will say so.
    """
    if len(source) > _SHORT:
        return None
    try:
        made = environment()
        return made.from_string(source) if _is_plain(made.parse(source), in_loop=False) else None
    except (TemplateSyntaxError, SyntaxError, RecursionError):
        return None


def asks_for(source: str, name: str) -> bool:
    """Whether a template makes use of what it is given by this name; not, where it is no template."""
    try:
        return name in meta.find_undeclared_variables(environment().parse(source))
    except (TemplateSyntaxError, RecursionError):
        return False


def _is_plain(node: nodes.Node, in_loop: bool) -> bool:
    if not isinstance(node, _PLAIN):
        return False
    if isinstance(node, nodes.For):
        over_messages = isinstance(node.iter, nodes.Name) and node.iter.name == "messages"
        if in_loop or not over_messages or node.recursive:
            return False
        in_loop = True
    if isinstance(node, nodes.Filter) and (node.name not in _FILTERS or node.args or node.kwargs):
        return False
    return all(_is_plain(child, in_loop) for child in node.iter_child_nodes())


class _Process:
    """A process that renders: started at once, for it takes a moment, and anew when it has ended."""

    def __init__(self) -> None:
        self._used = False
        self._start()

    def ask(self, question: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        """What it answers; TimeoutError, or ConnectionError if it ends of it."""
        used = self._used
        if self._process.poll() is not None:
            self._restart()
        try:
            return self._asked(question, seconds)
        except ConnectionError:
            self._restart()
            if not used:
                raise  # else it may have died meanwhile, or used up what it may compute for all questions together
            return self._asked(question, seconds)
        except TimeoutError:
            self._restart()
            raise

    def _asked(self, question: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        if not self._used:
            self._line(time.monotonic() + STARTING)  # that it is ready
        self._used = True
        end = time.monotonic() + seconds
        content = json.dumps(question).encode()
        self._channel.settimeout(seconds)
        self._channel.sendall(b"%d\n" % len(content) + content)
        answer = json.loads(self._line(end))
        if not isinstance(answer, dict):
            raise ConnectionError("no answer")
        return answer

    def _line(self, end: float) -> bytes:
        found = bytearray()
        while not found.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            piece = self._channel.recv(2**16)
            if not piece or len(found) > 8 * MOST:
                raise ConnectionError("the process has ended, or says too much")
            found += piece
        return bytes(found)

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        self._used = False
        self._end = weakref.finalize(self, _end, self._process, self._channel)

    def _restart(self) -> None:
        self._end()
        self._start()


def _end(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    channel.close()
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
