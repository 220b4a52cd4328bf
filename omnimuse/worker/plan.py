"""`TickPlan`: what one tick does, decided by the engine on rank 0 and executed alike by the runner of every rank.

It holds names and numbers, the pictures, videos and sounds that a request brings, and what has come of one from another
pool, packed; what ranks compute never travels with it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast
from zlib import crc32

import msgspec

from omnimuse.core.calls import Call, Tool
from omnimuse.core.loras import Lora, loras_of
from omnimuse.core.messages import Message
from omnimuse.core.params import DiffusionParams, family_params
from omnimuse.core.request import Clip, Picture, Recording, Region, Request
from omnimuse.core.spec import Spec


@dataclass(frozen=True)
class Heard:
    """What has come of a request from the pool before: the `head` of a `Handover`, and the `data` of its tensors
    (`worker/packing.py`).
    """

    request_id: str
    head: bytes
    data: memoryview | bytes


@dataclass(frozen=True)
class TickPlan:
    """What happens, in this order: requests are let go, taken in, parked on the CPU, woken; states advance.

    What requests are to wear all ranks `try_on`. `record` begins a recording, or drops it (None: neither), `write` ends
    it and names the file. With `rest` weights leave, or come back (None: neither). What was `heard` from the pool
    before this one every rank takes over. `stop` ends the loop. `alive` stands for the states that rank 0 had before,
    which every rank must have. In several `teams`, ranks evaluate some of the states each. Where all of them write a
    token, they write as many as `steps`. The memo has no more than `memo` bytes (None: as many as it may), but for what
    those in progress have as well.
    """

    drop: tuple[str, ...] = ()
    admit: tuple[Request, ...] = ()
    park: tuple[str, ...] = ()
    wake: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    try_on: tuple[Lora, ...] = ()
    record: bool | None = None
    write: str = ""
    rest: bool | None = None
    heard: Heard | None = None
    stop: bool = False
    alive: int = 0
    teams: int = 1
    steps: int = 1
    memo: int | None = None


MARKS = ("record", "write", "rest", "stop", "alive", "teams", "steps", "memo")


def fingerprint(states: Iterable[str]) -> int:
    """A number that stands for these states."""
    return crc32(" ".join(sorted(states)).encode())


def encode(plan: TickPlan) -> bytes:
    """The plan as bytes: a few hundred, and the pictures, videos and sounds of the requests that it admits."""
    return msgspec.msgpack.encode(plan)


def decode(payload: bytes, spec: Spec) -> TickPlan:
    """The plan that `encode` made; `spec` gives the family's parameter extension."""
    raw = msgspec.msgpack.decode(payload)
    admit = tuple(decode_request(fields, spec) for fields in raw.pop("admit"))
    names: dict[str, Any] = {field: tuple(raw[field]) for field in ("drop", "park", "wake", "run")}
    marks: dict[str, Any] = {field: raw[field] for field in MARKS}
    try_on = tuple(Lora(**fields) for fields in raw["try_on"])
    heard = None if raw["heard"] is None else Heard(**raw["heard"])
    return TickPlan(admit=admit, try_on=try_on, heard=heard, **names, **marks)


def decode_request(fields: dict[str, object], spec: Spec) -> Request:
    """The request that `dataclasses.asdict` turned into plain values; `spec` gives the family's extension."""
    extra, params, images = fields.pop("extra"), fields.pop("params"), fields.pop("images")
    sounds, videos, region = fields.pop("sounds", ()), fields.pop("videos", ()), fields.pop("region", None)
    assert isinstance(extra, dict)
    assert isinstance(params, dict)
    assert isinstance(images, list | tuple) and isinstance(sounds, list | tuple)
    assert isinstance(videos, list | tuple)
    messages, tools = (cast("list[dict[str, Any]]", fields.pop(name, ())) for name in ("messages", "tools"))
    known = {
        "params": DiffusionParams(**{**params, "loras": loras_of(params.get("loras"))}),
        "extra": family_params(spec.extra, extra),
        "images": tuple(_picture(image) for image in images),
        "region": _region(region) if region else None,
        "sounds": tuple(_recording(sound) for sound in sounds),
        "videos": tuple(_clip(video) for video in videos),
        "messages": tuple(_message(message) for message in messages),
        "tools": tuple(Tool(**tool) for tool in tools),
        "tokens": tuple(cast("list[int]", fields.pop("tokens", ()))),
        "branches": tuple(cast("list[str]", fields.pop("branches"))),
    }
    return Request(**{**fields, **known})  # type: ignore[arg-type]


def _message(given: dict[str, Any]) -> Message:
    parts = tuple((kind, text) for kind, text in given.get("parts", ()))
    calls = tuple(Call(**call) for call in given.get("calls", ()))
    return Message(given["role"], given["content"], parts, calls, given.get("answers", ""))


def _picture(given: Any) -> Picture:
    return Picture(**{**given, "png": _bytes(given["png"])})


def _clip(given: Any) -> Clip:
    track = None if given.get("track") is None else _recording(given["track"])
    return Clip(**{**given, "frames": tuple(_bytes(frame) for frame in given["frames"]), "track": track})


def _recording(given: Any) -> Recording:
    return Recording(**{**given, "pcm": _bytes(given["pcm"])})


def _region(given: Any) -> Region:
    left, above, right, below = given["pad"]
    mask = given["mask"]
    kept = None if mask is None else _clip(mask) if "frames" in mask else _picture(mask)
    return Region(kept, (left, above, right, below))


def _bytes(given: bytes | str) -> bytes:
    """Bytes that went through JSON, where they are base64, or did not."""
    return b64decode(given) if isinstance(given, str) else given
