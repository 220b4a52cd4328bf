"""Step caches, by which steps of a request are cut short: the choice, its names, and what is fitted to a model.

A choice is written as one text, such as `dbcache,threshold=0.1,first=2`, wherever people choose: on the command line,
in `params`, in a server's fields, in a file's settings. `cache/` carries it out. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from omnimuse.core.bounds import finite
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.kinds import check_kinds
from omnimuse.core.names import meant
from omnimuse.core.plugins import CACHES, brought
from omnimuse.core.step_masks import MASKS, step_mask

KINDS = ("none", "auto", "careful", "balanced", "fast", "teacache", "dbcache", "magcache")
FITTED = frozenset(KINDS) - {"none", "dbcache"}
"""Those that go by what was measured of a model, or published."""
MOST_ORDER = 4
"""A forecast of a higher order is noise: differences of differences of rounded numbers."""


@dataclass(frozen=True)
class CacheConfig:
    """What lets a step skip blocks of the network, and when. `None` is what the kind, or the model's fit, has.

    `threshold` is of the kind's own measure (`docs/caches.md`); 0 skips nothing. Of the "dbcache", `first` and `last`
    blocks are always computed. No step is skipped before `warm_up` ones were computed, no more than `most` altogether
    and `in_a_row`. What skipped blocks would have added is continued by a Taylor series of that `order`; 0 repeats
    it. `mask` has a 1 for every step that is computed in any case, or is one of `MASKS`; with `forced` every other one
    is skipped. A `kind` that a package brings has what the "dbcache" has.
    """

    kind: str = "none"
    threshold: float | None = None
    first: int | None = None
    last: int | None = None
    warm_up: int | None = None
    most: int | None = None
    in_a_row: int | None = None
    order: int = 0
    mask: str = ""
    forced: bool = False

    def __post_init__(self) -> None:
        check_kinds(self, "cache")
        if self.kind not in KINDS and self.kind not in (others := brought(CACHES, KINDS)):
            raise ConfigError(f"cache kind={self.kind!r} is not known; use one of {', '.join((*KINDS, *others))}")
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ConfigError(f"cache threshold={self.threshold} is not allowed; use a number >= 0 (0 never skips)")
        least = {"first": 0, "last": 0, "warm_up": 0, "most": 0, "in_a_row": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"cache {name}={value!r} is not allowed; use a whole number, at least {low}")
        if not 0 <= self.order <= MOST_ORDER:
            raise ConfigError(f"cache order={self.order!r} is not allowed; use a whole number from 0 to {MOST_ORDER}")
        self._check_mask()
        self._check_belonging()

    def _check_mask(self) -> None:
        if self.mask and self.mask not in MASKS and not set(self.mask) <= {"0", "1"}:
            raise ConfigError(
                f"cache mask={self.mask!r:.80} is not known; use one of {', '.join(MASKS)}, or a digit for every step, "
                "1 to compute it and 0 to let it be skipped"
            )
        if self.forced and not self.mask:
            raise ConfigError("cache forced=true skips what a mask does not name, and there is none; give a mask")

    def _check_belonging(self) -> None:
        """Nothing is accepted that the kind does not honour."""
        own = [part.name for part in fields(self) if getattr(self, part.name) != part.default and part.name != "kind"]
        kinds = {"teacache": ["first", "last"], "magcache": ["first", "last"]}
        without = own if self.kind in KINDS and self.kind != "dbcache" else []
        foreign = [name for name in own if name in kinds.get(self.kind, without)]
        if foreign:
            raise ConfigError(f"cache {foreign[0]} means nothing to {self.kind!r}; leave it out, or use 'dbcache'")

    @property
    def off(self) -> bool:
        """Whether every block of every step is computed in any case."""
        return self.kind == "none" or self.threshold == 0

    @property
    def filling(self) -> int:
        """How many steps have to be computed until a row has come to remember the most, and computes beside it; 0 if it
        remembers nothing.
        """
        return 0 if self.off else self.order + 2

    def computed(self, evaluations: int) -> CacheConfig:
        """A complete choice with which so many evaluations at the beginning are computed, and remembered as ever."""
        return OFF if self.off else replace(self, warm_up=evaluations, most=None, mask="", forced=False)

    def __str__(self) -> str:
        """The text that `cache_named` reads."""
        own = [(part.name, getattr(self, part.name)) for part in fields(self) if part.name != "kind"]
        chosen = [f"{name}={_written(value)}" for name, value in own if value != _DEFAULTS[name]]
        return ",".join([self.kind, *chosen])


_DEFAULTS: Mapping[str, Any] = MappingProxyType({part.name: part.default for part in fields(CacheConfig)})
OFF = CacheConfig()


class Preset(NamedTuple):
    """TeaCache with so many `times` the threshold that belongs to the model, and no more steps skipped `in_a_row`."""

    times: float
    in_a_row: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {"careful": Preset(0.8, 1), "balanced": Preset(1.0, 1), "fast": Preset(1.2, 2)}
)
"""The one that skips least is first. What the grader makes of them is in `docs/quality.md`: a stride that is regular
loses less than one that skips as often and irregularly.
"""
BY_NAME: Mapping[str, CacheConfig] = MappingProxyType(
    {
        **{kind: CacheConfig(kind) for kind in KINDS},
        "taylorseer": CacheConfig("dbcache", order=1),
    }
)
"""What a choice may begin with, besides the kinds that packages bring."""


@dataclass(frozen=True)
class TeaFit:
    """TeaCache for one model: the polynomial (highest power first) that rescales the change it sees, and the threshold
    that suits it. One means nothing without the other: a polynomial is never below some value, and a threshold below
    that never skips.
    """

    coefficients: tuple[float, ...] = (1.0, 0.0)
    threshold: float = 0.15

    def __post_init__(self) -> None:
        if not self.coefficients or not all(map(finite, self.coefficients)):
            raise ConfigError(f"teacache coefficients={self.coefficients} must be finite numbers, at least one")
        if not 0 <= self.threshold < math.inf:
            raise ConfigError(f"teacache threshold={self.threshold} is not allowed; use a number >= 0")


@dataclass(frozen=True)
class Fits:
    """What step caches know of one model: published with a method, or measured by `omnimuse calibrate`.

    `ratios` are MagCache's: by how much what the blocks add grows from one step to the next, over any number of steps.
    `only` are the kinds that there are for this model, where there are not all.
    `auto` is the choice that `auto` stands for. `blocks` are those of the stack that a cache is around, the fewest of
    several networks; 0 before the network is built. `dbcache` and `magcache` are the thresholds that suit those kinds,
    the documented ones where none were measured. `flaw` says what is wrong with the file that was to tell all this.
    `experts` are the networks that take turns, where there are several: each has a polynomial and ratios of its own.
    """

    tea: TeaFit = TeaFit()
    ratios: tuple[float, ...] = ()
    auto: str = ""
    blocks: int = 0
    only: tuple[str, ...] = ()
    dbcache: float = 0.24
    magcache: float = 0.06
    flaw: str = ""
    experts: tuple[tuple[str, Fits], ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= ratio < math.inf for ratio in self.ratios):
            raise ConfigError("magcache ratios must be finite numbers >= 0")
        for kind, threshold in (("dbcache", self.dbcache), ("magcache", self.magcache)):
            if not 0 <= threshold < math.inf:
                raise ConfigError(f"{kind} threshold={threshold} is not allowed; use a number >= 0")

    def of(self, network: str) -> Fits:
        """What is known of one `network`: all this, with its own polynomial and ratios, if it has some."""
        own = dict(self.experts).get(network, self)
        return replace(self, tea=replace(self.tea, coefficients=own.tea.coefficients), ratios=own.ratios)


def cache_named(text: str) -> CacheConfig:
    """The choice that a text such as `fast` or `dbcache,threshold=0.1,first=2` makes; ConfigError for any other."""
    name, *pairs = [part.strip() for part in text.split(",")]
    others = {} if name in BY_NAME else brought(CACHES, BY_NAME)
    if name not in BY_NAME and name not in others:
        near = meant(name, [*BY_NAME, *others])
        hint = f"; did you mean {near!r}?" if near else f"; use one of {', '.join((*BY_NAME, *others))}"
        raise ConfigError(f"cache={name!r:.80} is not known{hint}")
    chosen: dict[str, Any] = {}
    for pair in pairs:
        field, given, value = (part.strip() for part in pair.partition("="))
        known = [name for name in _DEFAULTS if name != "kind"]
        if not given:
            raise ConfigError(f"cache setting {pair!r:.80} is not NAME=VALUE with one of {', '.join(known)}")
        if field not in known:
            near = meant(field, known)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"cache has no setting {field!r:.80}; {hint}")
        if field in chosen:
            raise ConfigError(f"cache {field} is there twice; leave one out")
        if not value:
            raise ConfigError(f"cache setting {pair!r:.80} has no value; give it one, or leave it out")
        chosen[field] = _read(field, value)
    return replace(BY_NAME[name] if name in BY_NAME else CacheConfig(name), **chosen)


def completed(choice: CacheConfig, fits: Fits, evaluations: int | None = None) -> CacheConfig:
    """`choice` for one model, with what was left open filled in, and its mask for so many evaluations.

    ConfigError where the model lacks what the kind needs, or the mask is of another length.
    """
    if fits.only and choice.kind not in ("none", *fits.only):
        raise ConfigError(f"cache={choice.kind!r} is not there for this model; use one of {', '.join(fits.only)}")
    if fits.flaw and (choice.kind in FITTED or (choice.kind == "dbcache" and choice.threshold is None)):
        raise ConfigError(f"cache={choice.kind!r} goes by what was measured of this model, and {fits.flaw}")
    if choice.kind == "auto":
        if not fits.auto:
            raise ConfigError(
                "cache='auto' has nothing to go by for this model; measure it once with `omnimuse calibrate MODEL`, or "
                f"use one of {', '.join(PRESETS)}"
            )
        choice = cache_named(fits.auto)
    if choice.kind in PRESETS:
        times, in_a_row = PRESETS[choice.kind]
        choice = CacheConfig("teacache", round(times * fits.tea.threshold, 6), in_a_row=in_a_row)
    if choice.kind == "magcache" and not fits.ratios:
        raise ConfigError(
            "cache='magcache' needs to know how this model's residuals grow; measure it once with "
            "`omnimuse calibrate MODEL`, or use 'dbcache'"
        )
    usual: dict[str, dict[str, Any]] = {
        "none": {},
        "teacache": {"threshold": fits.tea.threshold, "warm_up": 1},
        "magcache": {"threshold": fits.magcache, "in_a_row": 3},
    }
    found = usual.get(choice.kind, {"threshold": fits.dbcache, "first": 1, "last": 0, "warm_up": 4, "in_a_row": 3})
    open_ones = {name: value for name, value in found.items() if getattr(choice, name) is None}
    if choice.mask and evaluations is not None:
        open_ones["mask"] = step_mask(choice.mask, evaluations)
    return replace(choice, **open_ones)


def offered(fits: Fits) -> list[str]:
    """Every short choice that can be made for a model; none for one that has no step caches."""
    found = []
    for name, choice in BY_NAME.items():
        try:
            completed(choice, fits)
        except ConfigError:
            continue
        found.append(name)
    return found


def asked_for(text: object, fits: Fits, evaluations: int, usual: CacheConfig = OFF) -> str | None:
    """The choice of a request written out in full, for a model; None for `usual`, that of all which say nothing.
    RequestError for one that makes no sense, leaves no block to skip, or has a mask for other numbers of steps.
    """
    if text is None:
        if usual.mask and evaluations > 1:
            try:
                step_mask(usual.mask, evaluations)
            except ConfigError as problem:
                why = "requests that name no cache are drawn so; name one, such as 'none', or take other steps"
                raise RequestError(f"{problem} ({why})", "cache") from problem
        return None
    if not isinstance(text, str):
        raise RequestError(
            f"cache={text!r:.80} is not a text; write it like 'fast' or 'dbcache,threshold=0.1'", "cache"
        )
    try:
        choice = completed(cache_named(text), fits, evaluations)
    except ConfigError as problem:
        raise RequestError(str(problem), "cache") from problem
    if fits.blocks and (why := too_few(choice, fits.blocks)):
        raise RequestError(why, "cache")
    return str(choice)


def too_few(choice: CacheConfig, blocks: int) -> str:
    """Why a stack of so many blocks has none left in the middle for a complete `choice`; empty if it has some."""
    first, last = choice.first or 0, choice.last or 0
    if choice.off or first + last < blocks:
        return ""
    return (
        f"cache first={first} and last={last} leave no block to skip: the network has {blocks}; use less, "
        f"together at most {blocks - 1}"
    )


def _read(name: str, value: str) -> Any:
    """A setting's value as its type."""
    try:
        if name == "mask":
            return value
        if name == "forced":
            return {"true": True, "false": False}[value.lower()]
        return float(value) if name == "threshold" else int(value)
    except (ValueError, KeyError):
        kinds = {"forced": "true or false", "threshold": "a number"}
        raise ConfigError(f"cache {name}={value!r:.80} is not {kinds.get(name, 'a whole number')}") from None


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
