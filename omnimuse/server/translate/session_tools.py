"""Tools in a session of `/v1/realtime`: from OpenAI's words for it into those of a chat, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omnimuse.core.calls import NO_TOOLS, Call, calls_of
from omnimuse.core.request import Door
from omnimuse.server.errors import refusal, unsupported
from omnimuse.server.translate.values import is_nothing, shown

CALLING = ("tools", "tool_choice", "parallel_tool_calls")
"""Settings of a session that are about tools."""


def chosen(key: str, value: Any, name: str, door: Door) -> Any:
    """A setting of `CALLING` as a chat has it; ApiError 400 for one that cannot be honoured."""
    if not door.limits.calls and not is_nothing(value) and value not in ("auto", "none", True):
        raise unsupported(name, NO_TOOLS)
    if key == "tools":
        if not isinstance(value, list | None):
            raise refusal("invalid_value", f"{name}={shown(value)} is no list of functions", name)
        return [_nested(each) for each in value or ()]
    if key == "parallel_tool_calls":
        if not isinstance(value, bool | None):
            raise refusal("invalid_value", f"{name}={shown(value)} is neither true nor false", name)
        return value
    return _nested(value)


def _nested(given: Any) -> Any:
    """A function whose fields stand beside its type, as a chat has it; anything else stays, to be refused by name."""
    if not isinstance(given, Mapping) or given.get("type") != "function" or "function" in given:
        return given
    return {"type": "function", "function": {name: value for name, value in given.items() if name != "type"}}


def flat(given: Any) -> Any:
    """A function of a chat in the words of a session."""
    return {"type": "function", **given["function"]} if isinstance(given, Mapping) else given


def call_of(fields: Mapping[str, Any], id_: str) -> Call:
    """The call that an item of a client says was made; RequestError for what is none."""
    function = {"name": fields.get("name"), "arguments": fields.get("arguments")}
    [call] = calls_of([{"id": fields.get("call_id") or id_, "function": function}], "item")
    return call


def joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of items, with the calls of an answer in the message of that."""
    found = list[dict[str, Any]]()
    for message in messages:
        if "tool_calls" in message and found and found[-1]["role"] == "assistant":
            before = found[-1].get("tool_calls", ())
            found[-1] = {**found[-1], "tool_calls": [*before, *message["tool_calls"]]}
        else:
            found.append(message)
    return found
