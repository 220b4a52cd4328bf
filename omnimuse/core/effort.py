"""How much is computed for a picture, as a word: OpenAI's `quality`, a share of the model's own steps. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EFFORT: Mapping[str, float] = MappingProxyType(
    {"low": 0.5, "medium": 1.0, "high": 1.5, "hd": 1.5, "xhigh": 2.0, "max": 3.0}
)
"""Every word, and its share of the model's own number of steps."""
LEVELS: Mapping[str, str] = MappingProxyType({"standard": "medium", "hd": "high", "default": "auto", "maximum": "max"})
"""Names of qualities that OpenAI has replaced, and SGLang's -> OpenAI's of today."""
UNSAID = ("auto", "standard", "default")
"""Words that choose nothing: the model's own number of steps."""


def steps_of(level: str, usual: int | None) -> int:
    """The steps that a word of `EFFORT` stands for with a model whose own number of steps is `usual`."""
    return max(1, round((usual or 1) * EFFORT[level]))
