"""What the messages of a chat show beside text: pictures, sounds and videos, in the parts that clients know.

OpenAI's `image_url` and `input_audio`, and `audio_url` and `video_url` as other servers have them. Nothing is decoded
here: routes give the sources to `http/uploads.py`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.messages import SHOWN
from omnimuse.core.request import Door
from omnimuse.server.errors import refusal
from omnimuse.server.http.uploads import Source
from omnimuse.server.translate.values import shown

KINDS = {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
"""Parts -> what they show, in our words."""
DETAILS = ("auto", "low", "high", "original")
HEARD = ("wav", "mp3", "flac", "ogg", "opus")


@dataclass
class Shown:
    """The sources of what messages show, in order, by kind."""

    sources: dict[str, list[Source]] = field(default_factory=lambda: {kind: [] for kind in SHOWN})

    def take(self, part: dict[str, Any], name: str, able: Collection[str]) -> dict[str, Any]:
        """A part of a message, in our words; ApiError 400 for one of a kind that the model is not `able` to take."""
        kind = str(part.get("type"))
        ours = KINDS[kind]
        if ours not in able:
            reads = " and ".join(["text", *sorted(able)]) if able else "text"
            raise refusal(
                "unsupported_task", f"{name} is {kind}, and this model reads {reads} only; leave it out", name
            )
        where, given = f"{name}.{kind}", part.get(kind)
        source = _sound(given, where) if kind == "input_audio" else address(given, where)
        self.sources[ours].append(source)
        return {"type": ours}


def able(door: Door) -> list[str]:
    """What messages may show to this model."""
    limits = door.limits
    takes = {
        "image": limits.max_images,
        "audio": limits.max_sounds,
        "video": limits.max_videos,
    }
    return [kind for kind, most in takes.items() if most]


def address(given: Any, name: str, like: str = "data:...;base64,...") -> Source:
    """Where a file is, in an URL `like` that. `detail` says how closely a picture should be looked at; here it is
    looked at as it is.
    """
    if not isinstance(given, dict) or not isinstance(given.get("url"), str):
        raise refusal("invalid_value", f'{name} is no object {{"url": "{like}"}}', name)
    if others := given.keys() - {"url", "detail"}:
        raise refusal("unknown_parameter", f"{name} has no field {shown(min(others, key=str))}; it has url", name)
    if given.get("detail", "auto") not in DETAILS:
        raise refusal("invalid_value", f"{name}.detail is not known; use one of {', '.join(DETAILS)}", name)
    return Source(name, url=given["url"])


def _sound(given: Any, name: str) -> Source:
    """A sound within the message."""
    if not isinstance(given, dict) or not isinstance(given.get("data"), str):
        raise refusal("invalid_value", f'{name} is no object {{"data": "...", "format": "wav"}}, in base64', name)
    if given.get("format", "wav") not in HEARD:
        raise refusal("invalid_value", f"{name}.format is not known; use one of {', '.join(HEARD)}", name)
    try:
        return Source(name, base64.b64decode(given["data"], validate=True))
    except (binascii.Error, ValueError):
        raise refusal("invalid_audio", f"{name}.data is no base64; encode the file with it", name) from None
