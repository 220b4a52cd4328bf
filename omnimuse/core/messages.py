"""What a model that writes is given to read beside a prompt: what was said so far between it and a person (`Message`),
or tokens by their numbers. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.core.bounds import is_text
from omnimuse.core.errors import RequestError
from omnimuse.core.params import FamilyParams, TokenParams

MAX_WRITTEN = 4_000_000
"""Characters of what a model that writes is given to read; how many of their tokens it can, it knows itself."""
MAX_TOKEN = 2**31 - 1
ROLES = ("system", "user", "assistant")
SHOWN = {"image": "images", "audio": "sounds", "video": "videos"}
"""What a part of a message can be beside text, and what a prompt calls a list of these."""


@dataclass(frozen=True)
class Message:
    """What one of `ROLES` said: a text and, if something is shown in it, its `parts` in order: (kind, text), where a
    kind is "text" or one of `SHOWN`. Which picture it is, the order in the whole conversation says.
    """

    role: str
    content: str
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def said(self) -> dict[str, Any]:
        """As chat templates take it."""
        shown = [{"type": kind, **({"text": text} if kind == "text" else {})} for kind, text in self.parts]
        return {"role": self.role, "content": shown or self.content}


@dataclass(frozen=True, kw_only=True)
class Talk:
    """The part of a request that is a conversation, or `tokens` by their numbers; empty where a prompt stands alone."""

    messages: tuple[Message, ...] = ()
    tokens: tuple[int, ...] = ()


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


def _message(given: Any, name: str) -> Message:
    if isinstance(given, Message):
        given = given.said
    if not isinstance(given, Mapping) or set(given) != {"role", "content"}:
        raise RequestError(f"{name} must be a dict with a role and a content, and nothing else", name)
    role, content, where = given["role"], given["content"], f"the content of {name}"
    if role not in ROLES:
        raise RequestError(f"{name} has the role {role!r:.80}; use one of {', '.join(ROLES)}", f"{name}.role")
    if not isinstance(content, str | list | tuple):
        raise RequestError(f"{where} must be a string, got {type(content).__name__}", f"{name}.content")
    parts = () if isinstance(content, str) else tuple(_part(each, f"{name}.content") for each in content)
    text = content if isinstance(content, str) else "\n".join(text for kind, text in parts if kind == "text")
    if not is_text(text):
        raise RequestError(
            f"{where} holds half a surrogate pair, which is no character; take it out", f"{name}.content"
        )
    shows = any(kind != "text" for kind, _ in parts)  # templates of models that see nothing know no parts
    return Message(role, text, parts if shows else ())


def _part(given: Any, name: str) -> tuple[str, str]:
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text" and set(given) == {"type", "text"} and isinstance(given["text"], str):
        return "text", given["text"]
    if kind in SHOWN and set(given) == {"type"}:
        return str(kind), ""
    kinds = ", ".join(f'{{"type": "{kind}"}}' for kind in SHOWN)
    raise RequestError(f'{name} has a part that is no {{"type": "text", "text": ...}} and none of {kinds}', name)
