"""What `omnimuse bench serve` can ask a server for, and which answers are good: pictures, answers in a chat, speech.

Nothing about connections or time: `bench_serve.py` sends these and measures. Values are as JSON has them, from a server
that may say anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PREVIEWS = 3
"""Looks at an unfinished picture, in a stream."""


@dataclass(frozen=True)
class Task:
    """What is asked at `path`, with `fields` for a prompt and, for a stream, those of `streamed`.

    `things` are what people call several of them. A whole answer is JSON that is `good`, or a `file`; of the events of
    a stream one is `begun` from when something can be looked at, one that `has` something has some of what was asked
    for, and one that is `ended` is the last and good.
    """

    things: str
    path: str
    fields: Callable[[str], dict[str, object]]
    streamed: Mapping[str, object]
    good: Callable[[dict[str, Any]], bool]
    begun: Callable[[dict[str, Any]], bool]
    has: Callable[[dict[str, Any]], bool]
    ended: Callable[[dict[str, Any]], bool]
    file: bool = False

    def judge(self, content: Any) -> str:
        """What is wrong with a whole answer, in a code; empty for a good one."""
        return "" if isinstance(content, dict) and self.good(content) else "invalid_answer"


def _first(found: Any) -> dict[str, Any]:
    """The first of a list of objects, empty where there is none."""
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}


def _said(choice: dict[str, Any], name: str) -> bool:
    """Whether a choice of a chat has anything in its message, or piece of one."""
    said = choice.get(name)
    return isinstance(said, dict) and any(said.get(part) for part in ("content", "audio", "images", "tool_calls"))


def _kind(event: dict[str, Any]) -> str:
    return str(event.get("type", ""))


def _drawn(picture: dict[str, Any]) -> bool:
    return any(picture.get(name) for name in ("b64_json", "url"))


def _written(piece: dict[str, Any]) -> bool:
    return _said(_first(piece.get("choices")), "delta")


def _spoken(event: dict[str, Any]) -> bool:
    return _kind(event) == "speech.audio.delta" and bool(event.get("audio"))


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "pictures": Task(
            "pictures",
            "/images/generations",
            lambda prompt: {"prompt": prompt, "n": 1},
            {"stream": True, "partial_images": PREVIEWS},
            lambda body: _drawn(_first(body.get("data"))),
            lambda event: _kind(event).endswith(".partial_image"),
            lambda event: _kind(event).endswith(".completed") and _drawn(event),
            lambda event: _kind(event).endswith(".completed"),
        ),
        "chat": Task(
            "answers",
            "/chat/completions",
            lambda prompt: {"messages": [{"role": "user", "content": prompt}]},
            {"stream": True, "stream_options": {"include_usage": True}},
            lambda body: _said(_first(body.get("choices")), "message"),
            _written,
            _written,
            lambda event: not event.get("choices") and isinstance(event.get("usage"), dict),
        ),
        "speech": Task(
            "sounds",
            "/audio/speech",
            lambda prompt: {"input": prompt},
            {"stream_format": "sse", "response_format": "pcm"},
            lambda body: False,
            _spoken,
            _spoken,
            lambda event: _kind(event) == "speech.audio.done",
            file=True,
        ),
    }
)
"""By the word of `--task`."""
