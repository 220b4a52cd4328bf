"""What a person may choose for one request: `DiffusionParams` and its typed extension per family.

Written by people, completed from the model's defaults by `core/request.py`, read by stages. `None` always means
"the model's own default". Frozen; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import UnionType
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Loras
from omnimuse.core.names import meant

OutputType = Literal["pil", "pt", "latent"]


@dataclass(frozen=True)
class FamilyParams:
    """Base of the typed extensions that model families declare in their `spec.py`."""

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        """Why these choices do not fit the others of a request, complete ones, or None. Sides are multiples."""
        return None

    @classmethod
    def made_up(cls, params: DiffusionParams, size_multiple: int) -> FamilyParams | None:
        """What a request with `params` cannot do without, of no meaning: for a warm-up. None: there is nothing."""
        return None


@dataclass(frozen=True, kw_only=True)
class ScheduleParams:
    """Per-request choices of how the noise falls, for models of flow matching; `None`: as the checkpoint has it.

    `flow_shift` moves the noise levels towards 1 (1 moves nothing), in place of a shift that follows the size. Above
    `boundary_ratio` of the noise the first of two experts evaluates. `scheduler` is a key of `flow.SCHEDULERS`.
    """

    flow_shift: float | None = None
    boundary_ratio: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkParams(ScheduleParams):
    """Per-request choices of how the network works; `None`: as the engine was started.

    `cache` says which steps may skip blocks, as a text that `caches.cache_named` reads: `"fast"`, `"none"`,
    `"dbcache,threshold=0.1"`. `loras` are adapters that the networks wear.
    """

    cache: str | None = None
    loras: Loras | None = None


WORK = frozenset({"cache", "loras"})
"""Parameters that every model honours whose networks are ours."""


@dataclass(frozen=True)
class SoundParams(FamilyParams):
    """The extension of a model whose sounds are windows of a longer one: they begin at second `start` of it."""

    start: float = 0.0


@dataclass(frozen=True)
class DiffusionParams(WorkParams):
    """Per-request choices. Every field left at `None` takes the model's default.

    Sizes are pixels, `fps` frames per second, `seconds` the length of a sound, `seed` an integer in [0, 2**64);
    output i of a request uses seed + i. `output_type` is `"pil"`, `"pt"` (float tensors) or `"latent"`. `extra` holds
    the family's own choices, as its dataclass or as a mapping of field names.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seconds: float | None = None
    seed: int | None = None
    num_outputs_per_prompt: int | None = None
    max_sequence_length: int | None = None
    strength: float | None = None
    output_type: OutputType | None = None
    extra: FamilyParams | Mapping[str, Any] | None = None

    def over(self, defaults: DiffusionParams) -> DiffusionParams:
        """These choices, with what was left open taken from `defaults` (`extra` excepted).

        A second guidance scale that was left open is the first one where that was chosen, as in diffusers.
        """
        names = [field.name for field in fields(self) if field.name != "extra"]
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "guidance_scale" in chosen:
            chosen.setdefault("guidance_scale_2", None)
        return replace(defaults, **chosen)


class ScheduleChoices(TypedDict, total=False):
    """The fields of `ScheduleParams` as keywords."""

    flow_shift: float | None
    boundary_ratio: float | None
    scheduler: str | None


class WorkChoices(ScheduleChoices, total=False):
    """The fields of `WorkParams` as keywords."""

    cache: str | None
    loras: Loras | None


class Choices(WorkChoices, total=False):
    """The fields of `DiffusionParams` as keywords."""

    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_scale_2: float | None
    true_cfg_scale: float | None
    height: int | None
    width: int | None
    num_frames: int | None
    fps: float | None
    seconds: float | None
    seed: int | None
    num_outputs_per_prompt: int | None
    max_sequence_length: int | None
    strength: float | None
    output_type: OutputType | None
    extra: FamilyParams | Mapping[str, Any] | None


def make_params(given: DiffusionParams | Mapping[str, Any] | None, choices: Mapping[str, Any]) -> DiffusionParams:
    """`given`, a dict of fields as well, with `choices` over it; RequestError names a field that does not exist."""
    if given is not None and not isinstance(given, DiffusionParams | Mapping):
        raise RequestError(
            f"params must be DiffusionParams or a dict of its fields, got {type(given).__name__}", "params"
        )
    base = given if isinstance(given, DiffusionParams) else DiffusionParams()
    wanted = {**(given if isinstance(given, Mapping) else {}), **choices}
    names = [field.name for field in fields(DiffusionParams)]
    for name in wanted:
        if name not in names:
            near = meant(str(name), names)
            hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(names)}"
            raise RequestError(f"there is no parameter {name!r}{hint}", str(name))
    return replace(base, **wanted)


def family_params(kind: type[FamilyParams], given: FamilyParams | Mapping[str, Any] | None) -> FamilyParams:
    """`given` as an instance of the family's extension type; RequestError for unknown names."""
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    allowed = [field.name for field in fields(kind)]
    if not isinstance(given, Mapping):
        raise RequestError(
            f"extra={given!r} does not fit this model; use {kind.__name__} or a dict of {allowed}", "extra"
        )
    for name in given:
        if name not in allowed:
            near = meant(str(name), [*allowed, *(part.name for part in fields(DiffusionParams))])
            hint = f"; did you mean {near!r}?" if near else ""
            raise RequestError(f"extra has no field {name!r} for this model; it knows {allowed}{hint}", f"extra.{name}")
    # A list is what a tuple becomes on its way through JSON or over a wire.
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def check_family_params(given: FamilyParams) -> None:
    """RequestError for a field of another type than declared, not finite, or outside of its metadata's low and high."""
    hints = get_type_hints(type(given))
    for field in fields(given):
        name, value = f"extra.{field.name}", getattr(given, field.name)
        if not _is_of(value, hints[field.name]):
            raise RequestError(f"{name}={value!r} is not of type {field.type}", name)
        low, high = field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)
        if isinstance(value, float | int) and not (math.isfinite(value) and low <= value <= high):
            raise RequestError(f"{name}={value!r} is not allowed; use a number from {low:g} to {high:g}", name)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether `value` is what the annotation `hint` says; whole numbers are real ones, truth values are no numbers."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (Union, UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(item, parts[0]) for item in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
