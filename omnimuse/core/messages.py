"""What was said so far between a person and a model that writes: `Message`, and how it is read. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnimuse.core.bounds import is_text
from omnimuse.core.errors import RequestError
from omnimuse.core.params import FamilyParams, TokenParams

MAX_WRITTEN = 4_000_000
"""Characters of what a model that writes is given to read; how many of their tokens it can, it knows itself."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """What one of `ROLES` said."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Talk:
    """The part of a request that is a conversation; empty where its prompt stands alone."""

    messages: tuple[Message, ...] = ()


def messages_of(prompt: Mapping[str, Any], family: str, writes: bool) -> tuple[Message, ...]:
    """The messages of a prompt, dicts with a role and a content, for a `family` that `writes`, or not; none without.

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
    length = sum(len(message.content) for message in messages)
    if length > MAX_WRITTEN:
        raise RequestError(f"messages have {length} characters; at most {MAX_WRITTEN} are allowed", "messages")
    return messages


def check_length(chosen: FamilyParams, longest: int) -> None:
    """RequestError where what is to be written has no room beside one token of a prompt, of `longest` in all."""
    if not isinstance(chosen, TokenParams):
        return
    for name, value in (("max_tokens", chosen.max_tokens), ("min_tokens", chosen.min_tokens)):
        if (value or 0) >= longest:
            why = f"this model reads and writes {longest} in all; use at most {longest - 1}"
            raise RequestError(f"extra.{name}={value} is too long: {why}", f"extra.{name}")


def _message(given: Any, name: str) -> Message:
    if isinstance(given, Message):
        given = {"role": given.role, "content": given.content}
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        raise RequestError(f"{name} must be a dict with a role and a content, and nothing else", name)
    role, content = given["role"], given["content"]
    if role not in ROLES:
        raise RequestError(f"{name} has the role {role!r:.80}; use one of {', '.join(ROLES)}", f"{name}.role")
    if not isinstance(content, str):
        raise RequestError(f"the content of {name} must be a string, got {type(content).__name__}", f"{name}.content")
    if not is_text(content):
        raise RequestError(f"{name} holds half a surrogate pair, which is no character; take it out", f"{name}.content")
    return Message(role, content)
