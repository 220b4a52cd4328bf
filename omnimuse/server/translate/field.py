"""One field of a request as it comes over the wire: `Field`, and how tables of them are written.

The tables are in `fields.py`, that of models that write in `talking.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from omnimuse.core.caches import BY_NAME

Shape = Literal[
    "text", "whole", "real", "flag", "choice", "size", "resolution", "background", "seconds", "object", "list", "file",
    "urls", "picture", "clip", "margins", "seed", "adapters", "texts", "one", "deadline",
    "any",
]  # fmt: skip
"""What a value looks like; "urls" is one address or several, "picture" and "clip" an upload or where it is, "margins"
four whole numbers, "texts" one text or a list of them, "one" a text or a list that holds one, "deadline" seconds or
the name of a class, "any" whatever JSON can say."""

Kind = Literal["image", "edit", "video", "audio", "speech", "chat", "talk", "completion", "hearing"]
"""Which endpoint reads: /v1/images/generations, /v1/images/edits, /v1/videos, /v1/audio, /v1/audio/speech,
/v1/chat/completions of a model that draws and of one that writes, /v1/completions, /v1/audio/transcriptions."""

HARMLESS = "harmless"
"""The target of fields that are checked and then change nothing, for the reason in `note`."""


MAX_WORD = 512
"""Characters of a name, which is no prompt."""
MAX_OUTPUTS = 10
"""Pictures or texts of one request, as OpenAI has it of pictures."""


@dataclass(frozen=True)
class Field:
    """One wire field: how its value is read, and the target it goes to (names of targets are in `aliases.py`).

    `low` and `high` bound numbers that the model's own limits do not bound; `longest` is of texts, in characters. Of a
    harmless choice, a value other than the first that is allowed is told in the answer's warnings: `warns` says why.
    """

    name: str
    shape: Shape
    target: str = ""
    note: str = ""
    allowed: tuple[str, ...] = ()
    neutral: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    longest: int = 0
    warns: str = ""

    def __post_init__(self) -> None:
        if self.shape == "text" and not self.longest:
            raise ValueError(
                f"the text field {self.name!r} needs a longest length: whatever is kept or repeated has one"
            )


MODEL = Field(
    "model", "text", "model", 'one that this server serves; "" and "default" mean the first', longest=MAX_WORD
)
TIMEOUT = Field("timeout_s", "real", "deadline", "give up after so many seconds (ours)")
DEADLINE = Field(
    "deadline",
    "deadline",
    "deadline",
    "when it is wanted, and of no use later: in so many seconds, or the name of a class such as `interactive` (ours)",
    longest=MAX_WORD,
)
"""Of every endpoint that makes something."""
BLOCKS = Field(
    "block_timings",
    "flag",
    "blocks",
    "the answer tells what every block of a network took, and every step (ours)",
)
"""Likewise; refused where the answer is no JSON."""
ADAPTERS = (
    Field(
        "lora",
        "adapters",
        "loras",
        "registered adapters that are worn: a name, name:scale, or {name, scale}; or a list",
    ),
    Field("loras", "adapters", "loras", "as `lora`"),
)
"""Likewise."""
STEP_CACHE = (
    Field(
        "cache",
        "text",
        "cache",
        f"skip work while little changes: {', '.join(BY_NAME)}, with settings as in docs/caches.md; in place of the "
        "server's choice",
        longest=MAX_WORD,
    ),
    Field("enable_teacache", "flag", "teacache", "true is `cache` with teacache; false asks for nothing (SG)"),
    Field("enable_cache_dit", "flag", "cache_dit", "true is `cache` with dbcache; false asks for nothing (SG)"),
    Field("cache_dit_params", "object", "cache_settings", "cache-dit's settings, such as Fn_compute_blocks (SG)"),
)
"""Of every endpoint that draws."""


def refused(note: str, *names: str, neutral: tuple[Any, ...] = ()) -> tuple[Field, ...]:
    """Fields that are known and not honoured, because of `note`."""
    return tuple(Field(name, "object", note=note, neutral=neutral) for name in names)
