"""From the fields of a request, in any client's words, to `Wanted`: one meaning per field, nothing dropped in silence.

Routes call `read`. What no client knows, what this model does not honour, and what contradicts itself is refused here;
the table is in `translate/fields.py`. Ranges and combinations that depend on the model are checked by the model's door.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from omnimuse.core.calls import NO_TOOLS
from omnimuse.core.effort import LEVELS, UNSAID, steps_of
from omnimuse.core.names import absent, meant, started
from omnimuse.core.params import DiffusionParams, GenerationParams, SoundParams, SpeechParams
from omnimuse.core.request import Door
from omnimuse.media.formats import COMPRESSION, TEXT
from omnimuse.server.errors import ApiError, refusal, unsupported
from omnimuse.server.translate.caches import chosen_cache
from omnimuse.server.translate.field import HARMLESS, Field, Kind
from omnimuse.server.translate.fields import TABLE, fields_of
from omnimuse.server.translate.talking import Talk as Talk
from omnimuse.server.translate.values import ADJUST, is_neutral, read_value, shown

FORMATS = {
    "png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP",
    "wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3",
    "opus": "OPUS", "aac": "AAC", "pcm": "PCM",
}  # fmt: skip
USUAL: Mapping[Kind, str] = {
    "image": "PNG",
    "edit": "PNG",
    "video": "MP4",
    "audio": "WAV",
    "speech": "WAV",
    "chat": "PNG",
    "talk": TEXT,
    "completion": TEXT,
    "hearing": TEXT,
}
"""The format of files where nobody chose one, by endpoint."""
SCALES = frozenset({"guidance_scale", "guidance_scale_2", "true_cfg_scale"})
ANY_MODEL = ("", "default")
"""Names by which clients mean whatever model there is."""

_SHOWN = ("urls", "last_urls")
_PARAMS = frozenset(part.name for part in fields(DiffusionParams))
_WRITING = frozenset(
    {"use_audio_in_video", *(part.name for kind in (GenerationParams, SpeechParams) for part in fields(kind))}
)


@dataclass(frozen=True)
class Output:
    """The files asked for: a format of `media/formats.py`, quality 1..100 of lossy pictures (None: ours), and how they
    come back. A sound is played `speed` times as fast.

    `level` is OpenAI's quality word, "auto" when none was chosen. `transport` is "b64_json", "url" or "file".
    """

    format: str = "PNG"
    quality: int | None = None
    level: str = "auto"
    background: str = "auto"
    transport: str = "b64_json"
    speed: float = 1.0


@dataclass(frozen=True)
class Delivery:
    """How the answer travels: as a stream (with so many previews, with an event per step), or as a durable job.

    `safety_identifier` travels back with it. `split` is set when a chat asked for `n` choices, `usage` when it asked
    for the usage at the end of a stream. `flow` says how speech is sent while it is made, as "audio" or "sse". With
    `blocks` it tells what every block of a network took.
    """

    stream: bool = False
    flow: str = ""
    partial_images: int = 0
    progress: bool = False
    durable: bool = False
    split: bool = False
    usage: bool = False
    blocks: bool = False
    safety_identifier: str | None = None


@dataclass(frozen=True)
class Part:
    """Which part of a picture is drawn anew: where its mask is, if it came as an address, and the margins around it."""

    mask_urls: tuple[str, ...] = ()
    pad: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Reels:
    """What a video is made of beside its first frame, if it came as an address: its last frame, and a whole video, and
    one of masks over that.
    """

    last_urls: tuple[str, ...] = ()
    video_urls: tuple[str, ...] = ()
    mask_urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """A request in our words; `names` says what the client called each of our parameters. Times in seconds.

    `adjust`: sides and frames may be rounded to legal ones. `warnings` is what the client should know of its request.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    params: DiffusionParams = DiffusionParams()
    output: Output = Output()
    delivery: Delivery = Delivery()
    deadline: float | str | None = None
    seconds: float | None = None
    model: str | None = None
    talk: Talk = Talk()
    part: Part = Part()
    urls: tuple[str, ...] = ()
    reels: Reels = Reels()
    names: Mapping[str, str] = field(default_factory=dict)
    adjust: bool = False
    warnings: tuple[str, ...] = ()


@dataclass
class _Found:
    """Values by target while a request is read, the wire name each came under, and what to warn of."""

    values: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def put(self, target: str, value: Any, name: str) -> None:
        """Note a value; ApiError when an alias said something else."""
        if target in self.values and self.values[target] != value:
            other = self.names[target]
            raise refusal(
                "conflicting_parameters",
                f"{name}={shown(value)} contradicts {other}={shown(self.values[target])}; leave one of them out",
                name,
            )
        self.values.setdefault(target, value)
        self.names.setdefault(target, name)


def read(
    given: Mapping[str, Any], kind: Kind, door: Door, *, form: bool = False, files: Collection[str] = ()
) -> Wanted:
    """What `given` asks of the model behind `door`; ApiError (400) names the first field that is wrong.

    `form`: the fields come from a multipart form, where numbers and flags are text. `files` names its uploads.
    """
    known, found = fields_of(kind), _Found()
    for name, wire, value in _flat(given, known, form):
        entry = known.get(wire)
        if entry is None:
            raise _unknown(name, wire, kind, door)
        if value is None or (value == "" and entry.shape != "text"):  # clients send "" for what was left empty
            continue
        if not entry.target:
            if not is_neutral(entry, value, form):
                raise unsupported(name, entry.note)
            continue
        _take(entry, read_value(entry, value, name, form), name, found)
    shows = "sounds" if kind == "speech" else "images"
    if kind == "speech":
        found.names.setdefault("sounds", "ref_audio")
    for name in files:
        target = known[wire := _upload(name, known, kind, door)].target
        found.names.setdefault(shows if target in _SHOWN else target, wire)
    for target in (target for target in _SHOWN if target in found.values):
        found.names.setdefault(shows, found.names[target])
        if kind == "speech":
            _check_takes_sounds(found.names[target], door)
        else:
            _check_takes_pictures(found.names[target], kind, door)
    if found.values.get("alone"):
        _check_takes_sounds(found.names["alone"], door)
    if "videos" in found.values:
        _check_takes_videos(found.names["videos"], door)
    for target in {"mask", "masks", "pad"} & found.values.keys():
        _check_draws_parts(found.names[target], door, kind)
    if (choice := chosen_cache(found.values, found.names)) is not None:
        found.values["cache"], found.names["cache"] = choice
    for target in ("tools", "tool_choice"):
        if not door.limits.calls and found.values.get(target) not in (None, [], "auto", "none"):
            raise unsupported(target, f"{NO_TOOLS}; leave it out")
    _refuse_unhonoured(found, door)
    if kind not in ("chat", "talk", "hearing"):
        _check_prompt(found, known, door)
    found.values.setdefault("format", USUAL[kind])
    return _wanted(found, door, form)


def _flat(given: Mapping[str, Any], known: Mapping[str, Field], form: bool) -> Iterator[tuple[str, str, Any]]:
    """(name for messages, wire name, value) of every field, those in nested objects of parameters included."""
    for wire, value in given.items():
        entry = known.get(wire)
        if entry is None or entry.target != "nested" or value is None:
            yield wire, wire, value
            continue
        for inner, deep in read_value(entry, value, wire, form).items():
            if (nested := known.get(inner)) is not None and nested.target == "nested":
                raise refusal("invalid_value", f"{wire}.{inner} nests too deep; give its fields directly", wire)
            yield f"{wire}.{inner}", inner, deep


def _take(entry: Field, value: Any, name: str, found: _Found) -> None:
    """Put a value where it belongs; sizes, words with two meanings and words for numbers are taken apart."""
    target = entry.target
    if target == HARMLESS:
        if entry.warns and value != entry.allowed[0]:
            found.warnings.append(entry.warns)
        return
    if target == "size" and value == ADJUST:
        found.put("adjust", True, name)
    elif target == "urls":
        found.values["urls"] = (*found.values.get("urls", ()), *value)
        found.names.setdefault("urls", name)
    elif target in ("seed", "loras") and value is None:
        return
    elif target == "top_k" and value == -1:
        found.put(target, 0, name)
    elif target == "size":
        for side, pixels in zip(("width", "height"), value or (), strict=False):
            found.put(side, pixels, name)
    elif target == "background" and isinstance(value, bool):
        found.put("durable", value, name)
    elif target == "stream_format":
        found.put("stream", value == "sse", name)
    elif target == "format":
        found.put(target, FORMATS[value], name)
    elif target == "compression" and isinstance(value, str):
        if COMPRESSION[value] is not None:
            found.put(target, COMPRESSION[value], name)
    else:
        found.put(target, value, name)


def _unknown(name: str, wire: str, kind: Kind, door: Door) -> ApiError:
    shown_name = shown(name)
    if wire in (part.name for part in fields(door.spec.extra)):
        return refusal("unknown_parameter", f"{shown_name} belongs to the model: put it in `extra_params`", name[:80])
    able = {entry.name: entry.target for entry in TABLE[kind] if entry.target}
    near = meant(wire[:80], [name for name, target in able.items() if target not in _PARAMS - door.honoured])
    if option := started(wire[:80]):
        why = f"it is chosen when the server starts, for all requests: `omnimuse serve MODEL {option}`"
        return refusal("unsupported_parameter", f"{shown_name} is not supported: {why}", name[:80])
    if why := absent(wire[:80]):
        return refusal("unsupported_parameter", f"{shown_name} is not supported: {why}", name[:80])
    hint = f"; did you mean {near!r}?" if near else "; the fields are listed at /openapi.json"
    return refusal("unknown_parameter", f"there is no field {shown_name} here{hint}", name[:80])


def _upload(name: str, known: Mapping[str, Field], kind: Kind, door: Door) -> str:
    """The plain name of an uploaded part (`image[]` is `image`), if this endpoint and model take it."""
    wire = name.split("[", 1)[0]
    entry = known.get(wire)
    if entry is None:
        raise _unknown(name, wire, kind, door)
    if entry.shape not in ("file", "picture", "clip"):
        why = f"it is no upload but {entry.note}" if entry.target else entry.note
        raise unsupported(name, why)
    if entry.target == "sounds":
        _check_takes_sounds(name, door)
        return wire
    if entry.target == "videos":
        _check_takes_videos(name, door)
        return wire
    if entry.target in ("mask", "masks"):
        _check_draws_parts(name, door, kind)
        if kind == "video":
            return wire
    _check_takes_pictures(name, kind, door)
    return wire


def _check_draws_parts(name: str, door: Door, kind: Kind) -> None:
    what, able = ("video", door.limits.masks_videos) if kind == "video" else ("picture", door.masks)
    if not able:
        why = f"this model cannot draw a part of a {what} anew; leave it out, and describe what changes"
        raise unsupported(name, why)


def _check_takes_sounds(name: str, door: Door) -> None:
    if not door.limits.max_sounds:
        raise unsupported(name, "this model starts from no sound; leave it out")


def _check_takes_videos(name: str, door: Door) -> None:
    if not door.limits.max_videos:
        raise unsupported(name, "this model starts from no video; leave it out")


def _check_takes_pictures(name: str, kind: Kind, door: Door) -> None:
    if not door.limits.max_images:
        code = "unsupported_task" if kind == "edit" else "unsupported_parameter"
        raise refusal(code, f"{name} is not supported: this model works from text only; leave the picture out", name)


def _refuse_unhonoured(found: _Found, door: Door) -> None:
    """Parameters that we know and this model does not honour; the door would refuse them, with a vaguer code.

    A scale that asks for what happens anyway is left out instead.
    """
    honoured = door.honoured
    for target, name in list(found.names.items()):
        if target not in _PARAMS or target == "extra":
            continue
        if target in SCALES and _is_idle(target, found, door):
            del found.values[target], found.names[target]
            continue
        if target not in honoured:
            reason = f"it means nothing to this model, which honours {', '.join(sorted(honoured - {'output_type'}))}"
            raise unsupported(name, reason)
        if target in door.limits.refuses:
            raise unsupported(name, door.limits.refuses[target])


def _is_idle(target: str, found: _Found, door: Door) -> bool:
    """Whether a scale that cannot be chosen is none at all, or the one that is used anyway."""
    only = getattr(door.limits.fixed, target)
    if target in door.honoured and target not in door.limits.refuses and only is None:
        return False
    used = [0.0, 1.0, only, getattr(door.defaults, target)]
    if target == "guidance_scale_2":
        used.append(found.values.get("guidance_scale", door.defaults.guidance_scale))
    return found.values[target] in used


def _check_prompt(found: _Found, known: Mapping[str, Field], door: Door) -> None:
    """ApiError for a request without one, by the first name that clients of that endpoint have for it."""
    if not door.spec.prompted:
        found.values.setdefault("prompt", "")  # what is not empty, the door refuses
        return
    name = found.names.get("prompt") or next(wire for wire, entry in known.items() if entry.target == "prompt")
    if "prompt" not in found.values:
        raise refusal("missing_parameter", f"{name} is missing; say what to make", name)
    if not found.values["prompt"].strip():
        raise refusal("invalid_value", f"{name} is empty; say what to make", name)


def _wanted(found: _Found, door: Door, form: bool) -> Wanted:
    values, names = found.values, found.names
    _spend(found, door)
    _check_delivery(found)
    chosen = {target: value for target, value in values.items() if target in _PARAMS and target != "extra"}
    if "extra" in values:
        chosen["extra"] = _family(values["extra"], names["extra"], door, form)
    unread = {"ref_text"} if values.get("alone") else set()
    if written := {target: values[target] for target in (values.keys() & _WRITING) - unread}:
        chosen["extra"] = written
    if "start" in values:
        chosen["extra"] = {**chosen.get("extra", {}), "start": _start(found, door)}
    return Wanted(
        prompt=values.get("prompt"),
        negative_prompt=values.get("negative_prompt"),
        params=DiffusionParams(**chosen),
        output=_output(found),
        delivery=_delivery(found),
        deadline=values.get("deadline"),
        seconds=values.get("length"),
        model=None if values.get("model") in ANY_MODEL else values.get("model"),
        talk=Talk.of(values),
        part=Part(values.get("mask", ()), values.get("pad")),
        urls=values.get("urls", ()),
        reels=Reels(values.get("last_urls", ()), values.get("videos", ()), values.get("masks", ())),
        names=names,
        adjust=values.get("adjust", False),
        warnings=tuple(found.warnings),
    )


def _start(found: _Found, door: Door) -> float:
    """Where the sound begins: a parameter of the families that know such a moment."""
    name, value = found.names["start"], found.values["start"]
    if not issubclass(door.spec.extra, SoundParams):
        raise unsupported(name, "this model makes its sounds whole")
    assert isinstance(value, float)
    return value


def _spend(found: _Found, door: Door) -> None:
    """Turn `quality` into a number of steps."""
    level = found.values.get("level", "auto")
    if level in UNSAID:
        return
    name = found.names["level"]
    if "num_inference_steps" in found.values:
        steps = found.names["num_inference_steps"]
        raise refusal(
            "conflicting_parameters", f"{name}={level!r} and {steps} both choose the steps; leave one out", name
        )
    found.put("num_inference_steps", steps_of(LEVELS.get(level, level), door.defaults.num_inference_steps), name)


def _check_delivery(found: _Found) -> None:
    values, names = found.values, found.names
    if values["format"] == "PNG" and values.get("compression", 100) < (COMPRESSION["high"] or 0):
        message = f"{names['compression']} has a meaning for jpeg and webp only; choose one of them as output_format"
        raise refusal("conflicting_parameters", message, names["compression"])
    for target in ("partial_images", "progress", "stream_options"):
        if values.get(target) and not values.get("stream"):
            message = f"{names[target]} has a meaning in a stream only; set stream to true, or leave it out"
            raise refusal("conflicting_parameters", message, names[target])
    transport = values.get("transport")
    for target, what in (("durable", "background=true"), ("transport", f"response_format={transport}")):
        if values.get("stream") and values.get(target) in (True, "url", "file"):
            message = f"{what} and stream=true contradict each other; a stream carries its pictures itself"
            raise refusal("conflicting_parameters", message, names[target])
    if values.get("durable") and transport == "file":
        message = "response_format=file and background=true contradict each other; a job is answered in JSON"
        raise refusal("conflicting_parameters", message, names["transport"])


def _output(found: _Found) -> Output:
    values = found.values
    compression = values.get("compression")
    level = values.get("level", "auto")
    return Output(
        format=values["format"],
        quality=None if compression is None else max(1, compression),
        level=LEVELS.get(level, level),
        background=values.get("background", "auto"),
        transport=values.get("transport", "b64_json"),
        speed=values.get("speed", 1.0),
    )


def _delivery(found: _Found) -> Delivery:
    values = found.values
    options = values.get("stream_options") or {}
    for name, value in options.items():
        if name != "include_usage" or not isinstance(value, bool):
            message = f"stream_options.{name} is not known; it has include_usage, true or false"
            raise refusal("invalid_value", message, f"stream_options.{name}"[:80])
    return Delivery(
        stream=values.get("stream", False),
        flow=values.get("flow", ""),
        partial_images=values.get("partial_images", 0),
        progress=values.get("progress", False),
        durable=values.get("durable", False),
        split=found.names.get("num_outputs_per_prompt", "").split(".")[-1] == "n",
        usage=bool(options.get("include_usage")),
        blocks=values.get("blocks", False),
        safety_identifier=values.get("safety_identifier"),
    )


def _family(given: Mapping[str, Any], name: str, door: Door, form: bool) -> dict[str, Any]:
    """The family's own parameters: known names, values of the type that they are declared with."""
    kinds = {part.name: part for part in fields(door.spec.extra)}
    read_: dict[str, Any] = {}
    for key, value in given.items():
        path = f"{name}.{key}"[:80]
        if key not in kinds:
            near = get_close_matches(key[:80], list(kinds), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it knows {', '.join(kinds) or 'none'}"
            raise refusal("unknown_parameter", f"the model has no parameter {shown(key)}{hint}", path)
        if value is not None:
            part = kinds[key]
            typed = "type" in part.metadata  # such a model checks values by itself
            read_[key] = _plain(value, form) if typed else read_value(_shape(part.type), value, path, form)
    return read_


def _plain(value: Any, form: bool) -> Any:
    """A value as JSON has it; forms hold text only."""
    if not form or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _shape(kind: Any) -> Field:
    """A field whose values are of the annotation `kind`."""
    said = str(kind)
    if "Literal" not in said:
        for name, shape in (("tuple", "list"), ("bool", "flag"), ("int", "whole"), ("float", "real")):
            if name in said:
                return Field("", shape)  # type: ignore[arg-type]
    return Field("", "text", longest=512)
