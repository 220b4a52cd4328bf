"""What a model that writes may have done for it (`Tool`), and what it asks for (`Call`). No torch.

A model asks in its text, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as its chat template has taught
it; whoever shows the text to people takes the calls out of it (`Splitter`). Nothing is carried out here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.bounds import is_text
from omnimuse.core.errors import RequestError

OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""What stands around a call in a text."""
FORCED = OPEN + '\n{"name": "'
"""What an answer begins with that must be a call."""
MOST_TOOLS = 128
"""Of a request, as OpenAI has it."""
MOST_CALLS = 128
"""Of a message."""
TRIES = 16
"""Ends of a call that may stand within its texts."""
NO_TOOLS = "this model calls no tools"
LOST = f"an answer has a {OPEN} that is no JSON object with a name and arguments; it was left as text"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID = re.compile(r"[!-~]{1,128}")
_FUNCTION = {"name", "description", "parameters", "strict"}


@dataclass(frozen=True)
class Tool:
    """A function by its `name`; `told` is what a template is told of it, as JSON."""

    name: str
    told: str

    @property
    def said(self) -> dict[str, Any]:
        """As chat templates take it."""
        found: dict[str, Any] = json.loads(self.told)
        return found


@dataclass(frozen=True)
class Call:
    """That a function is to be called, with `arguments`, an object as JSON; answers to it name its `id`."""

    id: str
    name: str
    arguments: str

    @property
    def said(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


def tools_of(prompt: Mapping[str, Any], able: bool) -> tuple[Tool, ...]:
    """The tools of a prompt, dicts as OpenAI has them, for a model that is `able` to call any; none without.

    RequestError for anything else, and where no conversation is there in which they could be called.
    """
    given = prompt.get("tools")
    if given is None or given in ([], ()) or prompt.get("tool_choice") == "none":
        return ()
    if not able:
        raise RequestError(f"tools mean nothing here: {NO_TOOLS}; leave them out", "tools")
    if not prompt.get("messages"):
        raise RequestError("tools are called in a conversation; give messages, and no other prompt", "tools")
    if not isinstance(given, list | tuple) or len(given) > MOST_TOOLS:
        raise RequestError(f"tools must be a list of at most {MOST_TOOLS} functions", "tools")
    tools = tuple(_tool(each, f"tools[{number}]") for number, each in enumerate(given))
    names = [tool.name for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            where = f"tools[{number}].function.name"
            raise RequestError(f"{where}={name!r} is the name of another tool, too; name each otherwise", where)
    return tools


def begun_of(prompt: Mapping[str, Any], tools: tuple[Tool, ...]) -> str:
    """What an answer must begin with by the `tool_choice` of a prompt: "required", or one of the `tools` by its name;
    nothing, where the choice is the model's. RequestError for anything else.
    """
    choice = prompt.get("tool_choice")
    if choice in (None, "auto", "none"):
        return ""
    if not tools:
        raise RequestError("tool_choice chooses among tools, and there are none; give tools, too", "tool_choice")
    if choice == "required":
        return FORCED
    named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, Mapping) else None
    if not isinstance(name, str) or set(choice) != {"type", "function"}:
        one = '{"type": "function", "function": {"name": ...}}'
        raise RequestError(f'tool_choice must be "auto", "none", "required" or {one}', "tool_choice")
    if name not in [tool.name for tool in tools]:
        raise RequestError(f"tool_choice names {name!r:.80}, which is none of the tools", "tool_choice")
    return f'{FORCED}{name}", "arguments":'


def _tool(given: Any, name: str) -> Tool:
    if isinstance(given, Tool):
        return given
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or given.get("type") != "function" or set(given) != {"type", "function"}:
        raise RequestError(f'{name} must be {{"type": "function", "function": {{"name": ...}}}}', name)
    where = f"{name}.function"
    if others := function.keys() - _FUNCTION:
        raise RequestError(f"{where} has no field {min(others, key=str)!r:.80}", where)
    if not isinstance(called := function.get("name"), str) or not _NAME.fullmatch(called):
        why = "it must be 1 to 64 letters, digits, - and _"
        raise RequestError(f"{where}.name={called!r:.80} names no function: {why}", f"{where}.name")
    if not isinstance(function.get("description"), str | None):
        raise RequestError(f"{where}.description must be a text", f"{where}.description")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise RequestError(f"{where}.parameters must be a JSON schema, an object", f"{where}.parameters")
    if not isinstance(function.get("strict"), bool | None):
        raise RequestError(f"{where}.strict must be true or false", f"{where}.strict")
    told = {key: value for key, value in function.items() if key != "strict" and value is not None}
    return Tool(called, _json({"type": "function", "function": told}, where))


def calls_of(given: Any, name: str) -> tuple[Call, ...]:
    """The calls of a message, dicts as OpenAI has them, or ours; RequestError for anything else."""
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or len(given) > MOST_CALLS:
        raise RequestError(f"{name} must be a list of at most {MOST_CALLS} calls", name)
    return tuple(_call(each, f"{name}[{number}]") for number, each in enumerate(given))


def _call(given: Any, name: str) -> Call:
    if isinstance(given, Call):
        return given
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or given.get("type", "function") != "function":
        shape = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
        raise RequestError(f"{name} must be {shape}", name)
    called, arguments = function.get("name"), function.get("arguments")
    if not isinstance(called, str) or not _NAME.fullmatch(called):
        raise RequestError(f"{name}.function.name={called!r:.80} names no function", f"{name}.function.name")
    where = f"{name}.function.arguments"
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, Mapping):
        raise RequestError(f"{where} must be an object, as JSON", where)
    return Call(answered(given.get("id"), f"{name}.id"), called, _json(read, where))


def answered(given: Any, name: str) -> str:
    """The name of a call; RequestError for what is none."""
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise RequestError(f"{name} must be the name of a call, up to 128 letters, got {given!r:.80}", name)
    return given


def _json(given: Any, name: str) -> str:
    try:
        told = json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{name} holds what JSON cannot say", name) from None
    if not is_text(told):
        raise RequestError(f"{name} holds half a surrogate pair, which is no character; take it out", name)
    return told


@dataclass
class Splitter:
    """Takes the calls out of a text that comes in pieces; their names begin with `name`. With `most`, no more than so
    many calls are told.

    Blanks around a call belong to it. What opens like a call and is none stays text, and is counted as `lost`.
    """

    name: str
    most: int | None = None
    calls: list[Call] = field(default_factory=list)
    lost: int = 0
    _held: str = ""
    _inside: bool = False  # `_held` is what follows an OPEN, which had `_blank` before it
    _blank: str = ""
    _searched: int = 0  # characters of `_held` in which no call ends
    _tries: int = 0  # ends that were within a text
    _behind: bool = False  # nothing has been told since the last call
    _spoken: bool = False  # some text has been told

    def add(self, piece: str) -> list[str | Call]:
        """What is sure, with one more piece: texts and calls, in order."""
        self._held += piece
        return self._told(over=False)

    def end(self) -> list[str | Call]:
        """Nothing more comes: what was held back. A call that was not closed is one if it is whole."""
        return self._told(over=True)

    def rest(self, text: str) -> str:
        """All that there is to say, where `text` is the whole rest."""
        return "".join(piece for piece in (*self.add(text), *self.end()) if isinstance(piece, str))

    def _told(self, over: bool) -> list[str | Call]:
        found = list[str | Call]()
        while self._inside or OPEN in self._held:
            if not self._inside:
                self._opened(found)
            if not self._ended(found, over):
                return found
        self._say(self._held if over else _sure(self._held), found)
        return found

    def _opened(self, found: list[str | Call]) -> None:
        """A call begins in `_held`; what is before it is told."""
        before, _, behind = self._held.partition(OPEN)
        text = before.rstrip()
        self._held = before
        self._say(text, found)
        self._blank, self._held = before[len(text) :], behind
        self._inside, self._searched, self._tries = True, 0, 0

    def _ended(self, found: list[str | Call], over: bool) -> bool:
        """Whether what began like a call is over; it is told then."""
        while (end := self._held.find(CLOSE, self._searched)) >= 0 or over:
            inner = self._held if end < 0 else self._held[:end]
            read, cut = _read(inner)
            if cut and end >= 0 and self._tries < TRIES:  # that which closes it is within a text of the call
                self._searched, self._tries = end + len(CLOSE), self._tries + 1
                continue
            whole = self._held[: len(inner) + len(CLOSE)]
            self._held, self._inside = self._held[len(whole) :], False
            self._call(read, self._blank + OPEN + whole, found)
            return True
        self._searched = max(self._searched, len(self._held) - len(CLOSE) + 1)
        return False

    def _call(self, read: tuple[str, str] | None, text: str, found: list[str | Call]) -> None:
        """Tell the call that was `read`, or, where it is none, its `text`."""
        if read is None:
            self.lost += 1
            self._held = text + self._held
            self._say(text, found)
            return
        if self.most is None or len(self.calls) < self.most:
            self.calls.append(Call(f"call_{self.name}-{len(self.calls)}", *read))
            found.append(self.calls[-1])
        self._behind = True

    def _say(self, text: str, found: list[str | Call]) -> None:
        """Tell the beginning `text` of `_held`, which is held no longer."""
        self._held = self._held[len(text) :]
        said = text.lstrip() if self._behind else text
        if said:
            found.append("\n" + said if self._behind and self._spoken else said)
            self._behind, self._spoken = False, True


def _sure(text: str) -> str:
    """The beginning of `text` that no call takes back: without what may begin one, and blanks before that."""
    lengths = range(min(len(OPEN) - 1, len(text)), 0, -1)
    begun = next((n for n in lengths if text.endswith(OPEN[:n])), 0)
    return text[: len(text) - begun].rstrip()


def _read(inner: str) -> tuple[tuple[str, str] | None, bool]:
    """The name and the arguments of what stands between the marks, if it is a call; and whether it ends in the middle
    of a text.
    """
    try:
        read = json.loads(inner, parse_constant=_refused)
    except json.JSONDecodeError as error:
        return None, error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return None, False
    name = read.get("name") if isinstance(read, dict) else None
    arguments = read.get("arguments", {}) if isinstance(read, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(arguments, dict):
        return None, False
    return (name, json.dumps(arguments, ensure_ascii=False)), False


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
