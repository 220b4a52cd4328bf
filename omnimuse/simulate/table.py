"""What work takes: a table of one model's kinds of requests, measured, and read from a file of JSON.

`omnimuse simulate --measure` writes it from a running server. Whoever has no such machine writes one by hand: a step
scales with a GPU, and what is simulated is who waits for whom.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ConfigError, reason


@dataclass(frozen=True)
class Kind:
    """One kind of request, in seconds of a replica of one rank.

    A `step` is what a denoising step of one output takes alone, `once` is all else that keeps the replica busy (this
    part of it `before` the steps, the rest after them), and `beside` what a client waits for without keeping it busy.
    What comes after the steps is done in so many `parts`, between which others have their turn (a video's decoder); 0:
    with the last step. A step is of `tokens` row tokens, by which the scheduler counts. `fixed` are the seconds of a
    step that do not come again with others that share it; None: it is as the table's `together` says.
    """

    width: int
    height: int
    steps: int
    step: float
    once: float = 0.0
    beside: float = 0.0
    frames: int = 1
    tokens: int = 0
    before: float = 0.5
    fixed: float | None = None
    parts: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "height", "steps", "frames"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} of a kind is not allowed; use a whole number above 0")
        if not self.step > 0 or min(self.once, self.beside, self.tokens, self.parts) < 0:
            raise ConfigError(f"{self} cannot be: a step takes more than 0 seconds, and nothing takes less than 0")
        if not 0 <= self.before <= 1 or (self.fixed is not None and self.fixed >= self.step):
            raise ConfigError(f"{self} cannot be: `before` is a part, 0 to 1, and `fixed` is less than the step")

    @property
    def work(self) -> int:
        """Row tokens of a step; where none are told, patches of 16 by 16 pixels of every fourth frame."""
        return self.tokens or max(1, self.width * self.height // 256 * ((self.frames + 3) // 4))

    @property
    def alone(self) -> float:
        """Seconds from asking to having, with a replica of one rank to oneself."""
        return self.busy + self.beside

    @property
    def busy(self) -> float:
        """Seconds that a replica of one rank is busy with it."""
        return self.once + self.steps * self.step


@dataclass(frozen=True)
class Table:
    """A model's kinds by name. `together` is what a forward shared by several takes, of their forwards one by one, for
    kinds that do not say it themselves, and `ranks` what a step of so many ranks takes, of one rank's. Of videos, so
    many frames are one of latents (`frame_step`).
    """

    model: str
    kinds: Mapping[str, Kind]
    together: float = 1.0
    frame_step: int = 4
    ranks: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigError("a table without kinds says nothing; name at least one kind of request")
        if not 0 < self.together <= 2:
            raise ConfigError(f"together={self.together} is not allowed; 1 is no gain, 0.5 takes half the time")

    def share(self, ranks: int) -> float:
        """What a step of `ranks` ranks takes, of one rank's; ConfigError where that was not measured."""
        if ranks == 1:
            return 1.0
        if ranks not in self.ranks:
            known = ", ".join(map(str, sorted(self.ranks))) or "1 only"
            raise ConfigError(
                f"--ranks {ranks}: the table of {self.model} does not tell what so many take (it has {known}); measure "
                "with `python -m benchmarks.parallel` and add it to `ranks`"
            )
        return self.ranks[ranks]

    def kind(self, name: str) -> Kind:
        """The kind called `name`; ConfigError with those there are."""
        if name not in self.kinds:
            raise ConfigError(f"the table of {self.model} has no kind {name!r}; it has {', '.join(self.kinds)}")
        return self.kinds[name]

    def encode(self) -> bytes:
        """This as JSON."""
        told = {"model": self.model, "together": self.together, "frame_step": self.frame_step}
        told |= {"ranks": {str(count): share for count, share in self.ranks.items()}}
        return (json.dumps({**told, "kinds": {n: asdict(k) for n, k in self.kinds.items()}}, indent=1) + "\n").encode()


def read_table(path: Path) -> Table:
    """The table in the file `path`; ConfigError where it is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no table of what work takes ({reason(error)}); `--measure` writes one") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no table of what work takes; `--measure` writes one")
    try:
        kinds = {str(name): _kind(path, name, values) for name, values in _mapping(found.pop("kinds")).items()}
        ranks = {int(count): float(share) for count, share in _mapping(found.pop("ranks", {})).items()}
        together, step = float(found.pop("together", 1.0)), int(found.pop("frame_step", 4))
        table = Table(str(found.pop("model")), kinds, together, step, ranks)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path} is no whole table: {type(error).__name__} {error}") from None
    if found:
        raise ConfigError(
            f"{path} says {', '.join(found)}, which mean nothing; use model, together, frame_step, ranks, kinds"
        )
    return table


def _kind(path: Path, name: str, values: Any) -> Kind:
    known = {each.name for each in fields(Kind)}
    if strange := _mapping(values).keys() - known:
        raise ConfigError(f"{path}, kind {name}: {', '.join(sorted(strange))} mean nothing; use {', '.join(known)}")
    return Kind(**values)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value
