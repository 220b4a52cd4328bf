"""When an answer is wanted: so many seconds after it was asked for, or a class that says so.

What a class means is chosen when an engine starts (`ScheduleConfig.deadlines`): seconds, or times what the request
would take alone. People name one as `deadline`; the door refuses names that nobody has chosen. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from omnimuse.core.errors import ConfigError, RequestError

NEVER = "never"
CLASSES: Mapping[str, str] = MappingProxyType({"interactive": "10x", "batch": NEVER})
"""Those there are unless an operator says otherwise."""


@dataclass(frozen=True)
class Within:
    """`seconds` after a request came, or `times` what it takes alone; neither: whenever it is done."""

    seconds: float | None = None
    times: float | None = None

    def after(self, alone: float | None) -> float | None:
        """In seconds, for a request that takes `alone`; None: there is no end, or it is not known yet."""
        if self.times is None:
            return self.seconds
        return None if alone is None else self.times * alone


def within(words: str, option: str) -> Within:
    """`3` seconds, `3x` what a request takes alone, or `never`; ConfigError, which names the `option`, for others."""
    if words == NEVER:
        return Within()
    try:
        value = float(words.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ConfigError(
            f"{option} {words} is not understood; write seconds, such as 3, times what a request takes alone, such as "
            f"3x, or {NEVER}"
        )
    return Within(times=value) if words.endswith("x") else Within(value)


def classes(words: Mapping[str, str]) -> dict[str, Within]:
    """What every class of `words` means, and of `CLASSES`, as far as it says nothing else of them."""
    for name in words:
        if not name.isidentifier():
            raise ConfigError(f"deadlines: {name!r} is no name of a class; use letters, digits and _, such as batch")
    return {name: within(meant, f"deadlines {name}") for name, meant in {**CLASSES, **words}.items()}


def class_named(name: str, known: Mapping[str, Within]) -> Within:
    """The class called `name`; RequestError with those there are."""
    if name not in known:
        raise RequestError(
            f"deadline={name!r:.80} is not known; use a number of seconds, or one of {', '.join(sorted(known))}",
            "deadline",
        )
    return known[name]
