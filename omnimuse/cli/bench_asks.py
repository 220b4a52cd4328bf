"""What `omnimuse bench serve` can ask a server for, and which answers are good: pictures and changed ones, videos,
sounds, answers in a chat, speech.

Nothing about connections or time: `bench_serve.py` sends these and measures. Values are as JSON has them, from a server
that may say anything.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

PREVIEWS = 3
"""Looks at an unfinished picture, in a stream."""
MADE, SIDE = "made", 256
"""What is said for a picture that is made here, and its sides in pixels."""

Fields = dict[str, object]


@dataclass(frozen=True)
class Task:
    """What is asked at `path`, with `fields` for a prompt and, for a stream, those of `streamed`.

    `things` are what people call several of them. A whole answer is JSON that is `good`, or a `file`; of the events of
    a stream one is `begun` from when something can be looked at, one that `has` something has some of what was asked
    for, and one that is `ended` is the last and good. Where it is `kept`, the answer is a job, which tells at its own
    address how it is getting on, and in events, which have it under that name.

    `takes` are the options of a load that make sense; `shown` are the fields by which a picture or a video at an
    address comes along, and `needs` says that one of the first must.
    """

    things: str
    path: str
    fields: Callable[[str], Fields]
    streamed: Mapping[str, object]
    good: Callable[[dict[str, Any]], bool]
    begun: Callable[[dict[str, Any]], bool]
    has: Callable[[dict[str, Any]], bool]
    ended: Callable[[dict[str, Any]], bool]
    file: bool = False
    kept: str = ""
    takes: frozenset[str] = frozenset({"mix", "steps"})
    shown: Mapping[str, Callable[[str], Fields]] = field(default_factory=dict)
    needs: str = ""

    def showing(self, shown: Mapping[str, str], prompt: str) -> Fields:
        """The fields of what is `shown` with a prompt, by medium: an address, or `MADE`."""
        fields: Fields = {}
        for medium, said in shown.items():
            fields |= self.shown[medium](made(prompt) if said == MADE else said)
        return fields

    def judge(self, content: Any) -> str:
        """What is wrong with a whole answer, in a code; empty for a good one."""
        return "" if isinstance(content, dict) and self.good(content) else "invalid_answer"


def made(prompt: str) -> str:
    """A picture as a data: URL, another one for another prompt, so that no server has it in memory: stripes."""
    draw = random.Random(prompt)
    rows = b"".join((b"\0" + draw.randbytes(3) * SIDE) * (SIDE // 8) for _ in range(8))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    pieces = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return data_url(b"\x89PNG\r\n\x1a\n" + b"".join(_piece(*each) for each in pieces), "image/png")


def _piece(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def data_url(content: bytes, kind: str) -> str:
    """Bytes as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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


def _sounding(event: dict[str, Any]) -> bool:
    return _kind(event) == "audio.delta" and bool(event.get("audio"))


def _completed(event: dict[str, Any]) -> bool:
    return _kind(event).endswith(".completed")


_PICTURES = Task(
    "pictures",
    "/images/generations",
    lambda prompt: {"prompt": prompt, "n": 1},
    {"stream": True, "partial_images": PREVIEWS},
    lambda body: _drawn(_first(body.get("data"))),
    lambda event: _kind(event).endswith(".partial_image"),
    lambda event: _completed(event) and _drawn(event),
    _completed,
)

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "pictures": _PICTURES,
        "edits": replace(
            _PICTURES,
            path="/images/edits",
            shown={"image": lambda url: {"images": [{"image_url": url}]}},
            needs=MADE,
        ),
        "videos": Task(
            "videos",
            "/videos",
            lambda prompt: {"prompt": prompt},
            {},
            lambda body: body.get("status") == "completed",
            lambda event: _kind(event).endswith(".preview"),
            _completed,
            _completed,
            kept="video",
            shown={
                "image": lambda url: {"input_reference": {"image_url": url}},
                "video": lambda url: {"video": {"video_url": url}},
            },
        ),
        "sounds": Task(
            "sounds",
            "/audio/generate",
            lambda prompt: {"input": prompt},
            {"stream_format": "sse"},
            lambda body: False,
            _sounding,
            _sounding,
            lambda event: _kind(event) == "audio.done",
            file=True,
            takes=frozenset({"steps"}),
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
            takes=frozenset({"tokens"}),
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
            takes=frozenset({"tokens"}),
        ),
    }
)
"""By the word of `--task`."""
