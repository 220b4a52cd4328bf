"""From a finished result to files in the spool folder, with the settings inside; and from a preview to a small JPEG.

A worker calls it on threads of its own, never on the engine's. Files appear whole: written under another name, synced,
renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from omnimuse.core.errors import ConfigError, RequestError, StorageError
from omnimuse.core.loras import loras_of
from omnimuse.core.loras import told as told_loras
from omnimuse.core.output import Part, Result
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, MadeFile
from omnimuse.media.destination import write_whole
from omnimuse.media.finished import encode, files
from omnimuse.media.formats import FORMATS, TEXT, usual
from omnimuse.media.image import from_pixels
from omnimuse.media.sound import PEAK, Sound, at_speed, check_library
from omnimuse.media.streamed import check_speed
from omnimuse.media.video import Video

PREVIEW_QUALITY = 80
_ROOM = 60_000  # bytes of settings that a JPEG or WebP holds, with some to spare
_OF_THE_CALL = frozenset({"seed", "num_outputs_per_prompt", "output_type"})  # no settings of one picture


def check_form(request: Request, form: Form, media: str) -> None:
    """RequestError unless a result of a model that is there for `media` can become a file of `form`."""
    media = request.extra.made(media)
    formats = (TEXT,) if media == "text" else tuple(dict.fromkeys(FORMATS[media].values()))
    if form.format not in formats:
        raise RequestError(
            f"format {form.format} does not fit a model of {media}; use one of {', '.join(formats)}",
            "output_format",
        )
    if form.quality is not None and form.format not in ("PNG", "JPEG", "WEBP"):
        raise RequestError(f"quality={form.quality} cannot be chosen for {form.format} files; leave it out", "quality")
    if form.speed != 1:
        if media != "audio":
            raise RequestError(f"speed={form.speed:g} is of sounds, and not of {media}; leave it out", "speed")
        check_speed(form.speed)
    if media == "audio":
        try:
            check_library(form.format)
        except ConfigError as error:
            why = f"this server writes no {form.format} files ({error}); ask for wav"
            raise RequestError(why, "output_format") from None
    if request.params.output_type != "pil":
        raise RequestError(
            f"output_type={request.params.output_type!r} cannot be served; leave it out or use 'pil'", "output_type"
        )


class Spool:
    """Writes the files of one worker; `name` tells its life apart in file names, `about` goes into every file."""

    def __init__(self, folder: Path, name: str, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.name = name
        self.about = dict(about)

    def write(self, number: int, request: Request, result: Result, form: Form) -> list[MadeFile]:
        """Encode and write the files of output `number` of a presented `result`; StorageError when the disk refuses."""
        told = {**self.about, **_settings(request, result), "seed": result.seeds[number]}
        settings = told if form.tell else {}
        if form.format in ("JPEG", "WEBP") and len(json.dumps(settings)) > _ROOM:
            settings = {name: value for name, value in settings.items() if "prompt" not in name}
        told_apart = [part for part in result.parts[number] if part.medium != "text"]  # which is no file
        name, made = f"{request.id}-{self.name}-{number}", files(told_apart) if told_apart else []
        names = [name if place == 0 else f"{name}-{place}" for place in range(len(made))]
        seed = result.seeds[number]
        return [self._write(each, parts, form, settings, seed) for each, parts in zip(names, made, strict=True)]

    def _write(self, stem: str, parts: Sequence[Part], form: Form, settings: Mapping[str, Any], seed: int) -> MadeFile:
        format_ = form.format if form.format != TEXT else usual(parts[0].medium)
        if form.speed != 1:
            parts = [Part(part.medium, at_speed(part.data, form.speed)) for part in parts]  # check_form: all sounds
        content, name = encode(parts, format_, settings, form.quality), f"{stem}.{format_.lower()}"
        try:
            write_whole(self.folder / name, content)
        except OSError as error:
            raise StorageError(f"the result could not be written: {error.strerror}; free some space") from error
        made = MadeFile(name, len(content), hashlib.sha256(content).hexdigest(), seed)
        return described(made, parts[0].data)


def described(file: MadeFile, made: Any) -> MadeFile:
    """`file` with the size of what is in it: a picture, a video or a sound."""
    if isinstance(made, Video):
        width, height = made.frames[0].size
        return replace(file, width=width, height=height, frames=len(made.frames), fps=made.fps, seconds=made.seconds)
    if isinstance(made, Sound):
        return replace(file, frames=0, seconds=made.seconds, rate=made.rate)
    return replace(file, width=made.width, height=made.height)


def pcm(samples: Any) -> bytes:
    """Float [channels, n] as 16 bits, low byte first, those of the channels in turn."""
    return bytes((samples.clip(-1, 1) * PEAK).round().astype("<i2").T.tobytes())


def preview(pixels: Any) -> bytes:
    """uint8 [H, W, 3] -> a JPEG."""
    buffer = io.BytesIO()
    from_pixels(pixels).save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()


def _settings(request: Request, result: Result) -> dict[str, Any]:
    chosen = {name: value for name, value in asdict(result.params).items() if value not in (None, {})}
    if loras := loras_of(result.params.loras):
        chosen["loras"] = told_loras(loras)
    prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    told: dict[str, Any] = {name: value for name, value in prompts.items() if value is not None}
    if request.images:
        told["images"] = [picture.digest for picture in request.images]
    if request.region is not None:
        told |= request.region.told
    if request.sounds:
        told["sounds"] = [sound.digest for sound in request.sounds]
    if request.videos:
        told["videos"] = [video.digest for video in request.videos]
    return {**told, **{name: value for name, value in chosen.items() if name not in _OF_THE_CALL}}
