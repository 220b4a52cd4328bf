"""What a session of `/v1/realtime` is set to, and the items of its conversation, from OpenAI's words into ours.

A setting that cannot be honoured is refused by name, unless it asks for nothing. What items show is found here and
decoded by the route. Sounds are samples of 16 bits of one channel: there is nothing to decode.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omnimuse.core.calls import NO_TOOLS, Call
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.names import meant
from omnimuse.core.request import Door, Picture, Recording
from omnimuse.media.streamed import check_speed
from omnimuse.media.voice import Pauses, detector
from omnimuse.server.errors import refusal, unsupported
from omnimuse.server.http.uploads import Source
from omnimuse.server.translate.parts import able
from omnimuse.server.translate.session_tools import CALLING, call_of, chosen, flat
from omnimuse.server.translate.values import is_nothing, shown

RATES = (16_000, 24_000)
"""Samples a second of what a client sends."""
SAMPLED = ("temperature", "top_p", "top_k", "repetition_penalty", "min_tokens", "seed", "stop")
"""Fields of a chat that a session has, too (ours)."""
WRITTEN = ("model", "language", "prompt", "temperature", "max_tokens", "seed")
"""Fields of a transcription of what is said; OpenAI has the first three."""
_VOID = {
    "turn_detection": "it is a field of audio.input",
    "transcription": "what is said is written down of the input alone; the output has its transcript",
    "noise_reduction": "what is heard is heard as it came",
    "speed": "it is a field of audio.output",
    "tracing": "the server's operator decides what is traced",
    "prompt": "prompts are not stored",
    "include": "how likely tokens were is not told",
    "reasoning": "the model thinks as it was taught to",
    "input": "an answer is to the conversation; make its items first",
}
"""Fields that are known and have no effect here: only what asks for nothing is taken."""
_ALLOWED = {
    "type": '"realtime"',
    "instructions": "a text",
    "output_modalities": '["audio"], ["text"] or, of a model that draws, ["text", "image"]',
    "max_output_tokens": 'a whole number of at least 1, or "inf"',
    "truncation": '"auto" or "disabled"',
}
"""Fields of a session, and what each may be."""
_SOUNDING = ("format", "turn_detection", "transcription", "noise_reduction", "voice", "speed")
"""Fields of its sounds."""
_ROLES = {"system": "input_text", "user": "input_text", "assistant": "output_text"}


@dataclass(frozen=True)
class Turning:
    """The server hears where a turn ends, by `pauses`, `answers` it, and `yields`: stops its own answer when the client
    begins to speak.
    """

    pauses: Pauses = Pauses()
    answers: bool = True
    yields: bool = True

    def told(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {
            "type": "server_vad",
            "threshold": self.pauses.threshold,
            "prefix_padding_ms": round(self.pauses.before * 1000),
            "silence_duration_ms": round(self.pauses.silence * 1000),
            "create_response": self.answers,
            "interrupt_response": self.yields,
            "idle_timeout_ms": None,
        }


@dataclass(frozen=True)
class Settings:
    """How answers are made: `aloud` or as text, with which `voice` and played `speed` times as fast, with a picture if
    they ask for one (`pictured`), of at most `most` tokens (None: no bound); `chosen`
    are fields of a chat. `rate` is that of sounds that come in, and `turning` says whose turn it is (None: the client
    does). If it `forgets`, the oldest items make room for new. What is said is written
    down, too, by the fields of a transcription `written` (None: it is not).
    """

    aloud: bool
    instructions: str = ""
    voice: str | None = None
    speed: float = 1.0
    pictured: bool = False
    most: int | None = None
    rate: int = RATES[-1]
    turning: Turning | None = None
    forgets: bool = True
    chosen: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] | None = None

    def changed(self, given: Any, name: str, door: Door) -> Settings:
        """These settings with what `given` says; ApiError 400 for what cannot be."""
        if not isinstance(given, dict):
            raise refusal("missing_parameter", f"{name} is missing, an object", name)
        made = self
        for key, value in given.items():
            made = made._with(key, value, f"{name}.{key[:80]}", door)
        return made

    def _with(self, key: str, value: Any, name: str, door: Door) -> Settings:
        match key:
            case "type" if value in ("realtime", None):
                return self
            case "instructions" if isinstance(value, str):
                return replace(self, instructions=value)
            case "output_modalities" if value in (["text"], ["audio"], ["text", "image"]):
                pictured = "image" in value
                if pictured and not door.limits.draws:
                    why = 'no picture comes with an answer of this model; use ["text"]'
                    raise refusal("unsupported_parameter", f"{name}: {why}", name)
                return replace(self, aloud=_aloud(value == ["audio"], door, name), pictured=pictured)
            case "max_output_tokens" if value in ("inf", None):
                return replace(self, most=None)
            case "max_output_tokens" if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return replace(self, most=value)
            case "truncation" if value in ("auto", "disabled"):
                return replace(self, forgets=value == "auto")
            case "audio":
                return self._sounding(value, name, door)
            case _ if key in CALLING:
                return replace(self, chosen={**self.chosen, key: chosen(key, value, name, door)})
            case _ if key in SAMPLED:
                return replace(self, chosen={**self.chosen, key: value})
        if allowed := _ALLOWED.get(key):
            raise refusal("invalid_value", f"{name}={shown(value)} is not allowed; use {allowed}", name)
        _check_void(key, value, name)
        return self

    def _sounding(self, given: Any, name: str, door: Door) -> Settings:
        made = self
        for side, fields in _object(given, name, ("input", "output")).items():
            for key, value in _object(fields, f"{name}.{side}", None).items():
                where = f"{name}.{side}.{key[:80]}"
                if key == "format":
                    made = made._format(side, value, where, door)
                elif (side, key) == ("input", "turn_detection"):
                    made = replace(made, turning=_turning(value, where, door))
                elif (side, key) == ("input", "transcription"):
                    made = replace(made, written=_written(value, where, door))
                elif (side, key) == ("output", "voice"):
                    voice = value.get("id") if isinstance(value, dict) else value
                    if not isinstance(voice, str | None):
                        raise refusal("invalid_value", f"{where}={shown(value)} is no name", where)
                    _aloud(voice is not None, door, where)
                    made = replace(made, voice=voice)
                elif (side, key) == ("output", "speed"):
                    made = replace(made, speed=_speed(value, where, door))
                else:
                    _check_void(key, value, where)
        return made

    def _format(self, side: str, value: Any, name: str, door: Door) -> Settings:
        if value is None:
            return self
        rates = RATES if side == "input" else (rate_of(door),)
        rate = value.get("rate", rates[-1]) if isinstance(value, dict) else None
        if rate is None or value.get("type") != "audio/pcm" or rate not in rates:
            told = " or ".join(map(str, rates))
            message = f'{name}={shown(value)} is not read here; use {{"type": "audio/pcm", "rate": {told}}}'
            raise refusal("invalid_value", message, name)
        return replace(self, rate=rate) if side == "input" else self

    def told(self, model: str, door: Door) -> dict[str, Any]:
        """The session as OpenAI's clients read it."""
        turning = None if self.turning is None else self.turning.told()
        heard = {
            "format": {"type": "audio/pcm", "rate": self.rate},
            "turn_detection": turning,
            "transcription": self.written,
        }
        said = {"format": {"type": "audio/pcm", "rate": rate_of(door)}, "voice": self.voice, "speed": self.speed}
        return {
            "type": "realtime",
            "object": "realtime.session",
            "model": model,
            "output_modalities": self.media,
            "instructions": self.instructions,
            "max_output_tokens": "inf" if self.most is None else self.most,
            "audio": {"input": heard, "output": said},
            "truncation": "auto" if self.forgets else "disabled",
            **self.chosen,
            "tools": [flat(tool) for tool in self.chosen.get("tools") or ()],
            "tool_choice": flat(self.chosen.get("tool_choice") or "auto"),
        }

    @property
    def media(self) -> list[str]:
        """What an answer is made of, in OpenAI's words."""
        if self.aloud:
            return ["audio"]
        return ["text", "image"] if self.pictured else ["text"]

    def fields(self) -> dict[str, Any]:
        """An answer as the fields of a chat ask for it."""
        asked: dict[str, Any] = {"stream": True, **self.chosen}
        if self.most is not None:
            asked["max_tokens"] = self.most
        if self.aloud:
            asked |= {"modalities": ["text", "audio"], "audio": {"format": "pcm16", "voice": self.voice}}
        return asked


@dataclass(eq=False)
class Item:
    """One message of a conversation: its parts in the words of templates, and what they show, in order; or a `call` of
    a tool, or what came of the one that it `answers`.

    `content` is how it is told: without the bytes.
    """

    id: str
    role: str
    parts: list[dict[str, Any]] = field(default_factory=list)
    sounds: list[Recording] = field(default_factory=list)
    images: list[Picture] = field(default_factory=list)
    content: list[dict[str, Any]] = field(default_factory=list)
    status: str = "completed"
    call: Call | None = None
    answers: str = ""

    @property
    def size(self) -> int:
        """Bytes of what it shows."""
        return sum(len(sound.pcm) for sound in self.sounds) + sum(len(image.png) for image in self.images)

    def told(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        about = {"id": self.id, "object": "realtime.item", "status": self.status}
        if (call := self.call) is not None:
            told = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            return {**about, "type": "function_call", **told}
        if self.answers:
            output = self.parts[0]["text"]
            return {**about, "type": "function_call_output", "call_id": self.answers, "output": output}
        return {**about, "type": "message", "role": self.role, "content": self.content}

    def message(self) -> dict[str, Any]:
        """As templates read it."""
        texts = [part["text"] for part in self.parts if part["type"] == "text"]
        said: dict[str, Any] = {
            "role": self.role,
            "content": "\n".join(texts) if len(texts) == len(self.parts) else self.parts,
        }
        if self.call is not None:
            said["tool_calls"] = [self.call]
        return {**said, "tool_call_id": self.answers} if self.answers else said


def begin(door: Door) -> Settings:
    """The settings of a session that nobody has changed."""
    return Settings(aloud=door.limits.speech is not None, pictured=door.limits.draws)


def rate_of(door: Door) -> int:
    """Samples a second of what the model says."""
    return RATES[-1] if door.limits.sound is None else door.limits.sound.rate


def heard(pcm: bytes, rate: int, id_: str) -> Item:
    """What somebody said, as an item."""
    sound = Recording(rate, 1, pcm)
    return Item(id_, "user", [{"type": "audio"}], [sound], content=[{"type": "input_audio", "transcript": None}])


def item_of(given: Any, id_: str, rate: int, door: Door) -> tuple[Item, list[Source]]:
    """The item that a client makes, and where the pictures in it are; ApiError 400 for what cannot be read."""
    if isinstance(given, dict) and given.get("type") in ("function_call", "function_call_output"):
        return _about_a_tool(given, id_, door), []
    fields = _object(given, "item", ("id", "type", "object", "status", "role", "content", "phase"))
    role, parts = fields.get("role"), fields.get("content")
    if fields.get("type", "message") != "message" or role not in _ROLES or not isinstance(parts, list) or not parts:
        why = f"it is a message with a role of {', '.join(_ROLES)}, and content, a list of parts"
        raise refusal("invalid_value", f"item cannot be read: {why}", "item")
    made, sources = Item(str(fields.get("id") or id_)[:64], str(role)), list[Source]()
    for index, part in enumerate(parts):
        name = f"item.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            _say(made, part["text"], _ROLES[str(role)])
        elif kind in ("output_audio", "audio") and role == "assistant" and isinstance(part.get("transcript"), str):
            _say(made, part["transcript"], "output_text")
        elif kind == "input_audio" and role == "user":
            _check_able("audio", name, able(door))
            made.parts.append({"type": "audio"})
            made.sounds.append(Recording(rate, 1, samples(part.get("audio"), f"{name}.audio")))
            made.content.append({"type": "input_audio", "transcript": None})
        elif kind == "input_image" and role == "user" and isinstance(part.get("image_url"), str):
            _check_able("image", name, able(door))
            made.parts.append({"type": "image"})
            sources.append(Source(f"{name}.image_url", url=part["image_url"]))
            made.content.append({"type": "input_image"})
        else:
            raise refusal("invalid_value", f"{name} of type {shown(kind)} cannot be part of what {role} says", name)
    return made, sources


def _about_a_tool(given: dict[str, Any], id_: str, door: Door) -> Item:
    """A call that was made, or what came of one."""
    if not door.limits.calls:
        raise refusal("unsupported_parameter", f"item is about a tool, and {NO_TOOLS}; leave it out", "item")
    known = ("id", "type", "object", "status", "call_id", "name", "arguments", "output")
    fields = _object(given, "item", known)
    name = str(fields.get("id") or id_)[:64]
    if fields["type"] == "function_call":
        return Item(name, "assistant", call=call_of(fields, id_))
    if not isinstance(output := fields.get("output"), str):
        raise refusal("invalid_value", f"item.output={shown(output)} is no text", "item.output")
    call = fields.get("call_id")
    if not isinstance(call, str) or not call:
        raise refusal("invalid_value", f"item.call_id={shown(call)} names no call", "item.call_id")
    return Item(name, "tool", [{"type": "text", "text": output}], answers=call[:128])


def samples(given: Any, name: str) -> bytes:
    """Samples of 16 bits in base64; ApiError 400 for anything else."""
    try:
        pcm = base64.b64decode(given, validate=True) if isinstance(given, str) else b""
    except (binascii.Error, ValueError):
        pcm = b""
    if not pcm or len(pcm) % 2:
        raise refusal("invalid_audio", f"{name} is no base64 of samples of 16 bits, low byte first", name)
    return pcm


def beyond(items: Sequence[Item], door: Door) -> int:
    """How many of the first `items` are too many, since the model hears and sees only so much at once."""
    sounds, images = door.limits.max_sounds, door.limits.max_images
    for index in range(len(items)):
        rest = items[index:]
        if sum(len(i.sounds) for i in rest) <= sounds and sum(len(i.images) for i in rest) <= images:
            return index
    return len(items)


def _say(item: Item, text: str, kind: str) -> None:
    item.parts.append({"type": "text", "text": text})
    item.content.append({"type": kind, "text": text})


def _aloud(wanted: bool, door: Door, name: str) -> bool:
    if wanted and not begin(door).aloud:
        why = 'this model answers with text; leave it out, or use ["text"] as output_modalities'
        raise refusal("unsupported_parameter", f"{name}: {why}", name)
    return wanted


def _speed(given: Any, name: str, door: Door) -> float:
    """How fast what is said is played; ApiError 400 for what cannot be."""
    speed = 1.0 if given is None else given
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        raise refusal("invalid_value", f"{name}={shown(given)} is no number", name)
    _aloud(speed != 1, door, name)
    try:
        check_speed(speed)
    except RequestError as error:
        raise refusal("invalid_value", f"{name}: {error}", name) from None
    return float(speed)


def _turning(given: Any, name: str, door: Door) -> Turning | None:
    """Whose turn it is, from OpenAI's words; ApiError 400 for what cannot be honoured."""
    if given is None:
        return None
    _check_able("audio", name, able(door))
    fields = dict(_object(given, name, ("type", *Turning().told())))
    if (kind := fields.pop("type", "server_vad")) != "server_vad":
        raise refusal("invalid_value", f'{name}.type={shown(kind)} is not known here; use "server_vad"', f"{name}.type")
    if fields.pop("idle_timeout_ms", None) is not None:
        where = f"{name}.idle_timeout_ms"
        raise unsupported(where, "who is silent is not asked for more")
    values = {key: value for key, value in fields.items() if value is not None}

    def number(key: str, least: float, most: float, unit: float, left_out: float) -> float:
        value = values.get(key, left_out / unit)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            where = f"{name}.{key}"
            raise refusal("invalid_value", f"{where}={shown(value)} is not within {least} and {most}", where)
        return value * unit

    def flag(key: str) -> bool:
        value = values.get(key, True)
        if not isinstance(value, bool):
            raise refusal("invalid_value", f"{name}.{key}={shown(value)} is neither true nor false", f"{name}.{key}")
        return value

    pauses = Pauses(
        number("threshold", 0.2, 1, 1, Pauses.threshold),
        number("prefix_padding_ms", 0, 5000, 0.001, Pauses.before),
        number("silence_duration_ms", 32, 10_000, 0.001, Pauses.silence),
    )
    try:
        detector()
    except ConfigError as error:
        raise refusal("unsupported_parameter", f"{name}: {error}", name) from None
    return Turning(pauses, flag("create_response"), flag("interrupt_response"))


def _written(given: Any, name: str, door: Door) -> Mapping[str, Any] | None:
    """How what is said is written down: fields of `/v1/audio/transcriptions`."""
    if given is None:
        return None
    _check_able("audio", name, able(door))
    return _object(given, name, WRITTEN)


def _check_able(kind: str, name: str, takes: Collection[str]) -> None:
    if kind not in takes:
        reads = " and ".join(["text", *sorted(takes)])
        raise refusal("unsupported_task", f"{name}: this model reads {reads} only; leave it out", name)


def _check_void(key: str, value: Any, name: str) -> None:
    """ApiError 400 unless a field that has no effect asks for nothing."""
    if key in _VOID and is_nothing(value):
        return
    if why := _VOID.get(key):
        raise unsupported(name, why)
    near = meant(key[:80], (*_ALLOWED, "audio", *CALLING, *SAMPLED, *_SOUNDING))
    raise refusal("unknown_parameter", f"there is no field {name}{f'; did you mean {near!r}?' if near else ''}", name)


def _object(given: Any, name: str, known: Collection[str] | None) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise refusal("invalid_value", f"{name}={shown(given)} is no object", name)
    if known is not None and (others := given.keys() - set(known)):
        raise refusal("unknown_parameter", f"{name} has no field {shown(min(others, key=str))}", name)
    return given
