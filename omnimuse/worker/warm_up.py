"""What a worker makes before it is ready: with the first picture or text libraries start threads, choose kernels.

The server's front checks the choice with it, a worker makes its request from it. No torch.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.evaluations import evaluations_beyond
from omnimuse.core.params import DiffusionParams, SpeechParams, TokenParams
from omnimuse.core.request import Ask, Clip, Door, Picture, Recording
from omnimuse.core.step_masks import least_steps

NONE, SMALL, DEFAULT = "none", "small", "default"
LIBRARY_SIDE = 256
_SIZE = re.compile(r"(\d{1,6})[xX](\d{1,6})(?:[xX](\d{1,6}))?")


def warm_up_ask(wanted: str, door: Door, option: str = "--warm-up") -> Ask | None:
    """The request that an `option` names: of "small" the smallest legal one, of "default" one of the model's own size,
    of "none" none, else of that size.

    ConfigError for anything else, and for a size that the model does not make.
    """
    if wanted == NONE:
        return None
    limits, size = door.limits, _SIZE.fullmatch(wanted)
    if size is None and wanted not in (SMALL, DEFAULT):
        known = "none, small, default, or a size as WxH or WxHxFRAMES"
        raise ConfigError(f"{option} {wanted} is not understood; use {known}")
    side = _small_side(door)
    width, height, frames = size.groups() if size else (side, side, None)
    least = limits.min_frames if limits.max_frames > 1 else None
    chosen: dict[str, Any] = {
        "width": int(width),
        "height": int(height),
        "num_frames": least if frames is None else int(frames),
        "num_inference_steps": limits.fixed.num_inference_steps or limits.min_steps,
        "seed": 0,
        **_unmasked(door),
    }
    if size is None:
        own = ("width", "height", "num_frames") if wanted == DEFAULT else ()
        chosen = {name: value for name, value in chosen.items() if name not in {*limits.refuses, *own}}
    text = "a warm-up" if door.spec.prompted else ""
    prompt: dict[str, Any] = {"prompt": text, "images": _blanks(limits.min_images)}
    if limits.min_videos:
        prompt["videos"] = [_film(chosen.get("num_frames") or door.defaults.num_frames or 1)] * limits.min_videos
    if door.spec.fills:
        prompt["pad"] = (LIBRARY_SIDE, 0, 0, 0)
    params = DiffusionParams(**chosen)
    params = replace(params, extra=door.spec.extra.made_up(params.over(door.defaults), limits.size_multiple))
    if isinstance(params.extra, SpeechParams) and limits.sound is not None and limits.sound.speech is not None:
        speech = limits.sound.speech
        params = replace(
            params, extra=replace(params.extra, instructions=text if speech.instructions == "must" else None)
        )
        prompt["sounds"] = [_silence(limits.sound.rate)] if speech.clones else []
    ask = Ask(prompt, params)
    try:
        door.make_request(ask, 0.0, 0)
    except RequestError as error:
        raise ConfigError(f"{option} {wanted} does not fit this model: {error}") from None
    return ask


def _unmasked(door: Door) -> dict[str, Any]:
    """What lets in a request of other steps than the mask of all who choose no step cache is for: the same without a
    mask, or where nobody chooses one, as few steps as there is a mask for.
    """
    limits, usual = door.limits, door.cache
    if not usual.mask or limits.fixed.num_inference_steps:
        return {}
    if "cache" in door.honoured - limits.refuses.keys():
        return {"cache": str(replace(usual, mask="", forced=False))}
    drawn, unchosen = least_steps(usual.mask), DiffusionParams()
    for steps in range(limits.min_steps, drawn):
        evaluations = steps + evaluations_beyond(door.scheduler, unchosen, steps)
        if evaluations == 1 or evaluations >= drawn:
            return {"num_inference_steps": steps}
    return {"num_inference_steps": max(limits.min_steps, drawn)}


def _small_side(door: Door) -> int:
    """The smallest legal side; a library's pipeline may not say what is too small for it, so for one a usual side."""
    step = door.limits.size_multiple
    return -(-LIBRARY_SIDE // step) * step if door.spec.library else step


def _film(frames: int) -> Clip:
    from PIL import Image

    from omnimuse.media.clip import clip_of

    return clip_of([Image.new("RGB", (LIBRARY_SIDE, LIBRARY_SIDE))] * frames)


def _blanks(count: int) -> list[Picture]:
    from PIL import Image

    from omnimuse.media.picture import picture_of

    return [picture_of(Image.new("RGB", (LIBRARY_SIDE, LIBRARY_SIDE)))] * count


def _silence(rate: int) -> Recording:
    import numpy as np

    from omnimuse.media.recording import recording_of

    return recording_of(np.zeros((1, rate), np.float32), rate)


def describe(ask: Ask) -> str:
    """What is drawn, in a few words."""
    params = ask.params
    if isinstance(params.extra, TokenParams):
        return f"{params.extra.max_tokens} tokens"
    if params.width is None:
        return "its own size"
    frames = f"x{params.num_frames}" if params.num_frames else ""
    steps = f"{params.num_inference_steps} step{'s' * (params.num_inference_steps != 1)}"
    return f"{params.width}x{params.height}{frames}, {steps}"
