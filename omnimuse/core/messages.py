"""What a model that writes is given to read beside a prompt: what was said so far between it and a person (`Message`),
or tokens by their numbers. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.core.bounds import is_text
from omnimuse.core.calls import NO_TOOLS, Call, Tool, answered, calls_of
from omnimuse.core.errors import RequestError
from omnimuse.core.params import AnswerParams, FamilyParams, TokenParams

MAX_WRITTEN = 4_000_000
"""Characters of what a model that writes is given to read; how many of their tokens it can, it knows itself."""
MAX_TOKEN = 2**31 - 1
ROLES = ("system", "user", "assistant", "tool")
BESIDE = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}
"""What a message of a role may have beside a content."""
SAID = ("messages", "tools", "tool_choice", "tokens")
"""What a prompt for a model that writes may have."""
SHOWN = {"image": "images", "audio": "sounds", "video": "videos"}
"""What a part of a message can be beside text, and what a prompt calls a list of these."""


@dataclass(frozen=True)
class Message:
    """What one of `ROLES` said: a text and, if something is shown in it, its `parts` in order: (kind, text), where a
    kind is "text" or one of `SHOWN`. Which picture it is, the order in the whole conversation says. An assistant may
    have made `calls`; a tool `answers` the one that has this name.
    """

    role: str
    content: str
    parts: tuple[tuple[str, str], ...] = ()
    calls: tuple[Call, ...] = ()
    answers: str = ""

    @property
    def said(self) -> dict[str, Any]:
        """As chat templates take it."""
        shown = [{"type": kind, **({"text": text} if kind == "text" else {})} for kind, text in self.parts]
        said: dict[str, Any] = {"role": self.role, "content": shown or self.content}
        if self.calls:
            said["tool_calls"] = [call.said for call in self.calls]
        return {**said, "tool_call_id": self.answers} if self.answers else said

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is read of it as text."""
        return (self.content, *(call.arguments for call in self.calls))


@dataclass(frozen=True, kw_only=True)
class Talk:
    """The part of a request that is a conversation, with the `tools` that may be called in it and what the answer has
    `begun` with, or `tokens` by their numbers; empty where a prompt stands alone.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    begun: str = ""
    tokens: tuple[int, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is read of it as text."""
        return (*(text for each in self.messages for text in each.texts), *(tool.told for tool in self.tools))


def messages_of(prompt: Mapping[str, Any], family: str, writes: bool, calls: bool = False) -> tuple[Message, ...]:
    """The messages of a prompt, dicts with a role and a content, for a `family` that `writes`, or not, by a template
    that knows `calls` of tools, or not; none without.

    RequestError for anything else, and beside a prompt of another kind.
    """
    given = prompt.get("messages")
    if given is None:
        return ()
    if not writes:
        raise RequestError(f"messages mean nothing to {family}, which reads none; give it a prompt", "messages")
    if prompt.get("prompt"):
        raise RequestError("messages and a prompt were given; a model answers one of them: leave one out", "prompt")
    if not isinstance(given, list | tuple) or not given:
        raise RequestError("messages must be a list of at least one dict with a role and a content", "messages")
    messages = tuple(_message(each, f"messages[{number}]") for number, each in enumerate(given))
    _check_calls(messages, calls)
    length = sum(len(text) for message in messages for text in message.texts)
    if length > MAX_WRITTEN:
        raise RequestError(f"messages have {length} characters; at most {MAX_WRITTEN} are allowed", "messages")
    return messages


def tokens_of(prompt: Mapping[str, Any], family: str, writes: bool, longest: int) -> tuple[int, ...]:
    """The tokens of a prompt, by their numbers, for a `family` that `writes`, or not, and reads and writes up to
    `longest`; none without.

    RequestError for anything else, and beside a prompt of another kind. Which numbers there are, the tokenizer knows.
    """
    given = prompt.get("tokens")
    if given is None:
        return ()
    if not writes:
        raise RequestError(f"tokens mean nothing to {family}, which reads texts; give it a prompt", "tokens")
    if prompt.get("prompt") or prompt.get("messages"):
        raise RequestError("tokens were given beside a text; a model reads one of them: leave one out", "tokens")
    numbers = isinstance(given, list | tuple) and all(type(token) is int and 0 <= token <= MAX_TOKEN for token in given)
    if not numbers or not given:
        raise RequestError("tokens must be a list of at least one whole number, none of them below 0", "tokens")
    if len(given) >= longest:
        why = f"this model reads and writes {longest} in all: give fewer"
        raise RequestError(f"there are {len(given)} tokens; {why}", "tokens")
    return tuple(given)


def check_shown(messages: Sequence[Message], counts: Mapping[str, int]) -> None:
    """RequestError unless the messages show as many pictures, sounds and videos as came with them, `counts` of each."""
    for kind, name in SHOWN.items():
        shown = sum(part == kind for message in messages for part, _ in message.parts)
        if messages and shown != counts[name]:
            raise RequestError(
                f"the messages show {shown} of {name}, and {counts[name]} came with them; give a message a part "
                f'{{"type": "{kind}"}} for each',
                name,
            )


def check_length(chosen: FamilyParams, longest: int) -> None:
    """RequestError where what is to be written has no room beside one token of a prompt, of `longest` in all."""
    if not isinstance(chosen, TokenParams):
        return
    for name, value in (("max_tokens", chosen.max_tokens), ("min_tokens", chosen.min_tokens)):
        if (value or 0) >= longest:
            why = f"this model reads and writes {longest} in all; use at most {longest - 1}"
            raise RequestError(f"extra.{name}={value} is too long: {why}", f"extra.{name}")


def check_begun(chosen: FamilyParams, begun: str) -> None:
    """RequestError where an answer that has `begun` as a call is to be heard: nothing of it is for ears."""
    if begun and isinstance(chosen, AnswerParams) and chosen.aloud:
        why = 'use modalities ["text"], or tool_choice "auto"'
        raise RequestError(f"tool_choice asks for a call, which is not spoken: {why}", "tool_choice")


def _check_calls(messages: Sequence[Message], able: bool) -> None:
    """RequestError for calls, and answers to them, that a template is not `able` to tell; for an answer to no call."""
    made = set[str]()
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if (message.calls or message.role == "tool") and not able:
            raise RequestError(f"{name} is about a tool, and {NO_TOOLS}; leave it out", name)
        if message.role == "tool" and message.answers not in made:
            why = "no message before it makes a call of this id"
            raise RequestError(
                f"{name}.tool_call_id={message.answers!r} answers nothing: {why}", f"{name}.tool_call_id"
            )
        made |= {call.id for call in message.calls}


def _message(given: Any, name: str) -> Message:
    if isinstance(given, Message):
        given = given.said
    role = given.get("role") if isinstance(given, Mapping) else None
    beside = BESIDE.get(role, ()) if isinstance(role, str) else ()
    calls = (
        calls_of(given["tool_calls"], f"{name}.tool_calls") if "tool_calls" in beside and "tool_calls" in given else ()
    )
    if calls and given.get("content") is None:
        given = {**given, "content": ""}
    if not isinstance(given, Mapping) or set(given) - set(beside) != {"role", "content"}:
        raise RequestError(f"{name} must be a dict with a role and a content, and nothing else", name)
    content, where = given["content"], f"the content of {name}"
    if role not in ROLES:
        raise RequestError(f"{name} has the role {role!r:.80}; use one of {', '.join(ROLES)}", f"{name}.role")
    answers = answered(given.get("tool_call_id"), f"{name}.tool_call_id") if role == "tool" else ""
    if not isinstance(content, str | list | tuple):
        raise RequestError(f"{where} must be a string, got {type(content).__name__}", f"{name}.content")
    parts = () if isinstance(content, str) else tuple(_part(each, f"{name}.content") for each in content)
    text = content if isinstance(content, str) else "\n".join(text for kind, text in parts if kind == "text")
    if not is_text(text):
        raise RequestError(
            f"{where} holds half a surrogate pair, which is no character; take it out", f"{name}.content"
        )
    shows = any(kind != "text" for kind, _ in parts)  # templates of models that see nothing know no parts
    return Message(role, text, parts if shows else (), calls, answers)


def _part(given: Any, name: str) -> tuple[str, str]:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text" and set(given) == {"type", "text"} and isinstance(given["text"], str):
        return "text", given["text"]
    if kind in SHOWN and set(given) == {"type"}:
        return str(kind), ""
    kinds = ", ".join(f'{{"type": "{kind}"}}' for kind in SHOWN)
    raise RequestError(f'{name} has a part that is no {{"type": "text", "text": ...}} and none of {kinds}', name)
