"""What a person may choose for one request: `DiffusionParams` and its typed extension per family.

Written by people, completed from the model's defaults by `core/request.py`, read by stages. `None` always means
"the model's own default". Frozen; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, ClassVar, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from omnimuse.core.bounds import finite
from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Loras
from omnimuse.core.names import meant

OutputType = Literal["pil", "pt", "latent"]


@dataclass(frozen=True)
class FamilyParams:
    """Base of the typed extensions that model families declare in their `spec.py`.

    By a choice a request may take more memory, or less, if its metadata say `sizing`; those that do not, if it `sizes`.
    """

    sizes: ClassVar[bool] = True

    @property
    def pictures(self) -> int:
        """How many pictures an output is."""
        return 1

    def made(self, usual: str) -> str:
        """The medium of what a file of a request is of, of a model that is there for `usual`."""
        return usual

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        """Why these choices do not fit the others of a request, complete ones, or None. Sides are multiples."""
        return None

    @classmethod
    def understood(cls, prompt: dict[str, Any], params: DiffusionParams) -> tuple[dict[str, Any], DiffusionParams]:
        """What scripts for another engine say to this family in words of that engine's alone, in ours."""
        return prompt, params

    @classmethod
    def made_up(cls, params: DiffusionParams, size_multiple: int) -> FamilyParams | None:
        """What a request with `params` cannot do without, of no meaning: for a warm-up. None: there is nothing."""
        return None

    def brief(self, params: DiffusionParams, pictures: Sequence[tuple[int, int]], size_multiple: int) -> FamilyParams:
        """These choices where it matters alone how much memory a request with `params`, and `pictures` of these sizes,
        takes: what is written before something is drawn is no more than has to be.
        """
        return self

    @property
    def sizing(self) -> tuple[object, ...]:
        """Those of these choices by which a request of one size may take more or less memory. Of numbers that are
        fractions, that is whether they are 0 or 1, since with these something may be left out.
        """
        values = [getattr(self, each.name) for each in fields(self) if each.metadata.get("sizing", self.sizes)]
        return tuple(None if isinstance(value, float) and value not in (0, 1) else value for value in values)


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
class TokenParams(FamilyParams):
    """Of models that make one token after the other; what is left at None is as the checkpoint's
    generation_config.json has it.

    At most `max_tokens` are made (without any bound: as many as the model can read), at least `min_tokens` before
    it may end by itself. A `temperature` of 0 takes the likeliest token every time; else one is drawn of the `top_k`
    likeliest (0: of all) and, of these, of those that make up `top_p`. A `repetition_penalty` above 1 makes what was
    read or made less likely.
    """

    sizes = False

    max_tokens: int | None = field(default=None, metadata={"low": 1})
    min_tokens: int = field(default=0, metadata={"low": 0})
    temperature: float | None = field(default=None, metadata={"low": 0, "high": 100})
    top_k: int | None = field(default=None, metadata={"low": 0})
    top_p: float | None = field(default=None, metadata={"low": 0, "high": 1})
    repetition_penalty: float | None = field(default=None, metadata={"low": 0.01, "high": 100})

    @classmethod
    def made_up(cls, params: DiffusionParams, size_multiple: int) -> FamilyParams | None:
        return cls(max_tokens=2)

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            return f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}; use at most that"
        return None


@dataclass(frozen=True)
class GenerationParams(TokenParams):
    """The extension of a model that writes.

    A text of `stop` ends the answer and is not part of it; `suppressed` are ids of tokens that are never written.
    """

    stop: tuple[str, ...] = ()
    suppressed: tuple[int, ...] = ()

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        if "" in self.stop:
            return "stop holds an empty text, which ends nothing; leave it out"
        return super().objection(params, size_multiple)


@dataclass(frozen=True)
class AnswerParams(GenerationParams):
    """The extension of a model that answers in text and, where "audio" is among the `modalities`, aloud as well.

    `voice` is one that the checkpoint has (None: its first), `voice_temperature` that of all codes of the sound (0: the
    likeliest every time; None: as the model talks), `voice_tokens` the most frames that are said (None: as many as the
    answer has, at most as many as the model says). Text is always among what is made.
    """

    modalities: tuple[str, ...] = ("text",)
    voice: str | None = None
    voice_temperature: float | None = field(default=None, metadata={"low": 0, "high": 100})
    voice_tokens: int | None = field(default=None, metadata={"low": 1})

    @property
    def aloud(self) -> bool:
        """Whether it is spoken, too."""
        return "audio" in self.modalities

    def made(self, usual: str) -> str:
        return "audio" if self.aloud else usual

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        if not {"text"} <= set(self.modalities) <= {"text", "audio"}:
            return f'modalities={list(self.modalities)} cannot be; use ["text"] or ["text", "audio"]'
        for name in ("voice", "voice_temperature", "voice_tokens"):
            if (value := getattr(self, name)) is not None and not self.aloud:
                return f'{name}={value!r} says how it sounds, and no sound is wanted; use modalities ["text", "audio"]'
        return super().objection(params, size_multiple)


@dataclass(frozen=True)
class WatchParams(AnswerParams):
    """The extension of a model that answers aloud and, where `use_audio_in_video`, hears videos while it watches them:
    a sound that a message shows right behind a video is that video's own.
    """

    use_audio_in_video: bool = False


@dataclass(frozen=True)
class SpeechParams(TokenParams):
    """The extension of a model that speaks: its tokens are frames of sound.

    `voice` and `language` are of those that the checkpoint has (None: its first voice; the language of the text), and
    `instructions` say in words how it is spoken. `ref_text` is what is said in the sound whose voice it takes: with it,
    it goes on as that does, not in its voice alone. A frame is several codes: the `code_` choices are for all but the
    first of them.
    """

    voice: str | None = None
    language: str | None = None
    instructions: str | None = None
    ref_text: str | None = None
    code_temperature: float | None = field(default=None, metadata={"low": 0, "high": 100})
    code_top_k: int | None = field(default=None, metadata={"low": 0})
    code_top_p: float | None = field(default=None, metadata={"low": 0, "high": 1})


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
        chosen = {name: value for name, value in vars(self).items() if value is not None and name != "extra"}
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


class GenerationChoices(TypedDict, total=False):
    """The fields of `GenerationParams` as keywords."""

    max_tokens: int | None
    min_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    stop: tuple[str, ...]
    suppressed: tuple[int, ...]


class SpeechChoices(TypedDict, total=False):
    """The fields of `SpeechParams` that models which write do not have, as keywords."""

    voice: str | None
    language: str | None
    instructions: str | None
    ref_text: str | None
    code_temperature: float | None
    code_top_k: int | None
    code_top_p: float | None


class AnswerChoices(TypedDict, total=False):
    """The fields of `WatchParams` that others which write or speak do not have, as keywords."""

    modalities: tuple[str, ...]
    voice_temperature: float | None
    voice_tokens: int | None
    use_audio_in_video: bool


class Choices(WorkChoices, GenerationChoices, SpeechChoices, AnswerChoices, total=False):
    """The fields of `DiffusionParams`, and those of models that write or speak, as keywords."""

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


def make_params(
    given: DiffusionParams | TokenParams | Mapping[str, Any] | None, choices: Mapping[str, Any]
) -> DiffusionParams:
    """`given`, a dict of fields as well, with `choices` over it; RequestError names a field that does not exist.

    What a model that writes or speaks knows besides goes into `extra`.
    """
    if isinstance(given, TokenParams):
        given = DiffusionParams(extra=given)
    if given is not None and not isinstance(given, DiffusionParams | Mapping):
        raise RequestError(
            f"params must be DiffusionParams or a dict of its fields, got {type(given).__name__}", "params"
        )
    base = given if isinstance(given, DiffusionParams) else DiffusionParams()
    wanted = {**(given if isinstance(given, Mapping) else {}), **choices}
    names = [part.name for part in fields(DiffusionParams)]
    kinds = (GenerationParams, WatchParams, SpeechParams)
    writing = list(dict.fromkeys(part.name for kind in kinds for part in fields(kind)))
    written = {name: wanted.pop(name) for name in writing if name in wanted}
    for name in wanted:
        if name not in names:
            near = meant(str(name), [*names, *writing])
            hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(names)}"
            raise RequestError(f"there is no parameter {name!r}{hint}", str(name))
    made = replace(base, **wanted)
    return replace(made, extra=_with(made.extra, written)) if written else made


def _with(
    extra: FamilyParams | Mapping[str, Any] | None, written: Mapping[str, Any]
) -> FamilyParams | Mapping[str, Any]:
    """`extra` with choices of a model that writes or speaks over it."""
    if isinstance(extra, FamilyParams):
        if strange := sorted(written.keys() - {part.name for part in fields(extra)}):
            why = f"means nothing beside {type(extra).__name__}; it is for other models that write or speak"
            raise RequestError(f"{strange[0]} {why}", strange[0])
        return replace(extra, **written)
    return {**(extra or {}), **written}


def family_params(kind: type[FamilyParams], given: FamilyParams | Mapping[str, Any] | None) -> FamilyParams:
    """`given` as an instance of the family's extension type; RequestError for unknown names."""
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if isinstance(given, TokenParams) and issubclass(kind, type(given)):  # of one that knows less: the rest is open
        return kind(**{part.name: getattr(given, part.name) for part in fields(given)})
    allowed = [part.name for part in fields(kind)]
    known = ", ".join(allowed) or "none"
    if not isinstance(given, Mapping):
        raise RequestError(
            f"extra={given!r} does not fit this model; use {kind.__name__} or a dict of {known}", "extra"
        )
    for name in given:
        if name not in allowed:
            near = meant(str(name), [*allowed, *(part.name for part in fields(DiffusionParams))])
            hint = f"; did you mean {near!r}?" if near else ""
            raise RequestError(f"extra has no field {name!r} for this model; it knows {known}{hint}", f"extra.{name}")
    # A list is what a tuple becomes on its way through JSON or over a wire.
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """The types of its fields; every request asks for them."""
    return MappingProxyType(get_type_hints(kind))


def objected(given: FamilyParams, why: str) -> RequestError:
    """An objection of `given` as an error, of the field that it begins with, if it does."""
    name = why.partition("=")[0]
    return RequestError(why, f"extra.{name}" if name in {part.name for part in fields(given)} else "extra")


def check_family_params(given: FamilyParams) -> None:
    """RequestError for a field of another type than declared, not finite, or outside of its metadata's low and high."""
    kind: Any = type(given)
    hints = _hints(kind)
    for part in fields(given):
        name, value = f"extra.{part.name}", getattr(given, part.name)
        if value is part.default:
            continue
        if not _is_of(value, hints[part.name]):
            raise RequestError(f"{name}={value!r} is not of type {part.type}", name)
        low, high = part.metadata.get("low", -math.inf), part.metadata.get("high", math.inf)
        if type(value) in (float, int) and not (finite(value) and low <= value <= high):
            allowed = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
            raise RequestError(f"{name}={value!r} is not allowed; use a number {allowed}", name)


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
