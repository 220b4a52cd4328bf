"""From `Wanted` to the frozen `Request` of the engine, and to the form of its files.

Routes call this after `aliases.read`. Errors of the model's door come out with the client's own names of the fields.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Request
from omnimuse.deploy.wire import Form
from omnimuse.media.prompts import with_tracks
from omnimuse.server.errors import unsupported
from omnimuse.server.translate.aliases import Wanted

NOTHING: Mapping[str, object] = MappingProxyType({})
MAX_PATIENCE = 24 * 3600.0
"""Seconds; a client that says it waits longer says nothing."""


def to_request(
    wanted: Wanted, door: Door, tenant: str = "", looks: int = 0, came: Mapping[str, object] = NOTHING
) -> Request:
    """What `wanted` asks for, checked by the model's door and completed; RequestError names the client's field.

    `came` is what came with it, decoded, under a prompt's own names for it: `images`, `mask`, `videos`, `sounds`.
    `looks` is how many previews there should be. Deadlines count from now on the monotonic clock.
    """
    prompt: Mapping[str, Any] = {"prompt": wanted.prompt}
    if wanted.talk.messages is not None:
        talk = wanted.talk
        prompt = {"messages": talk.messages, "tools": talk.tools, "tool_choice": talk.tool_choice}
    beside = {"pad": wanted.part.pad, "negative_prompt": wanted.negative_prompt}
    prompt = {**prompt, **{name: given for name, given in came.items() if given}}
    prompt |= {name: given for name, given in beside.items() if given is not None}
    blocks = wanted.delivery.blocks
    prompt = with_tracks(prompt) if door.spec.writes else prompt
    ask = Ask(prompt, settled(wanted, door).params, deadline=wanted.deadline, tenant=tenant, blocks=blocks)
    closed = door if door.adapters is not None else replace(door, adapters={})  # a client never names a file
    try:
        made = closed.make_request(ask, now=time.monotonic(), fresh_seed=secrets.randbelow(2**32))
    except RequestError as error:
        raise renamed(error, wanted.names) from None
    return replace(made, previews=preview_period(made.evaluations, looks))


def to_form(wanted: Wanted, tell: bool = True) -> Form:
    """The file that every output becomes; `tell`: it says how it was made."""
    return Form(wanted.output.format, wanted.output.quality, tell, wanted.output.speed)


def video_form(tell: bool) -> Form:
    """The file that a video becomes; there is one."""
    return Form("MP4", tell=tell)


def patience(headers: Mapping[str, str]) -> float | None:
    """How many seconds the client will wait for the answer, if it says so (the official client does)."""
    try:
        seconds = float(headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds <= MAX_PATIENCE else None


def preview_period(steps: int, wanted: int) -> int:
    """Every how many steps the engine should show a preview so that `wanted` of them can be spread evenly; 0: none."""
    return max(1, steps // (wanted + 1)) if wanted else 0


def preview_steps(steps: int, wanted: int) -> tuple[int, ...]:
    """Which steps' previews to show: `wanted` multiples of the period, evenly, none of them the last step.

    Where a request has too few steps, every step but the last.
    """
    if not wanted or steps <= 1:
        return ()
    if steps <= wanted:
        return tuple(range(1, steps))
    period, gap = preview_period(steps, wanted), steps / (wanted + 1)
    return tuple(period * math.floor(index * gap / period + 0.5) for index in range(1, wanted + 1))


def settled(wanted: Wanted, door: Door) -> Wanted:
    """`wanted` with `seconds` turned into frames and, where it may be adjusted, with what the model can make.

    Its warnings tell what was changed. RequestError for a video that is too long.
    """
    params = _timed(wanted, door)
    if not wanted.adjust:
        return replace(wanted, params=params)
    params, told = door.adjusted(params)
    return replace(wanted, params=params, adjust=False, warnings=(*wanted.warnings, *told))


def _timed(wanted: Wanted, door: Door) -> DiffusionParams:
    """The parameters with `seconds`; of a video, turned into the nearest number of frames that the model can make."""
    if wanted.seconds is None:
        return wanted.params
    if door.spec.medium == "audio":
        if "seconds" not in door.honoured:
            name = wanted.names["length"]
            raise unsupported(name, "this model decides by itself")
        return replace(wanted.params, seconds=wanted.seconds)
    if wanted.params.num_frames is not None:
        return wanted.params  # the number of frames is what the model makes; clients send both
    rate = wanted.params.fps or door.defaults.fps
    return replace(wanted.params, num_frames=door.limits.frames_in(wanted.seconds, rate, too_many=wanted.adjust))


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """`error` in the client's words: `n` where it said n, `size` where it gave a size, `extra_params` for extra."""
    first, _, rest = (error.param or "").partition(".")
    usual = {"num_outputs_per_prompt": "n", "images": "image"}
    usual |= {"sounds": "audio", "videos": "video", "mask": names.get("masks", "mask")}
    usual["seconds"] = names.get("length", "seconds")
    usual["output_format"] = names.get("format", "output_format")
    if first == "extra" and rest in names:  # a family's own, for which clients have a field
        return RequestError(str(error).replace(f"extra.{rest}", names[rest], 1), names[rest])
    name = names.get(first, usual.get(first, first))
    message = str(error).replace(f"(`{first}`)", f"(`{name}`)")
    if name != first and message.startswith(f"{first}="):
        message = f"{name}{message.removeprefix(first)}" if first not in ("width", "height") else f"{name}: {message}"
    return RequestError(message, ".".join(part for part in (name, rest) if part) or None)
