"""From a finished result to files in the spool folder, with the settings inside; and from a preview to a small JPEG.

A worker calls it on threads of its own, never on the engine's. Files appear whole: written under another name, synced,
renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from omnimuse.core.errors import RequestError, StorageError
from omnimuse.core.output import Result
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, MadeFile
from omnimuse.media.destination import write_whole
from omnimuse.media.image import encode_image, from_pixels
from omnimuse.media.video import Video, encode_video

FORMATS = {"image": ("PNG", "JPEG", "WEBP"), "video": ("MP4",)}
PREVIEW_QUALITY = 80
_ROOM = 60_000  # bytes of settings that a JPEG or WebP holds, with some to spare
_OF_THE_CALL = frozenset({"seed", "num_outputs_per_prompt", "output_type"})  # no settings of one picture


def check_form(request: Request, form: Form, media: str) -> None:
    """RequestError unless a result of `media` ("image" or "video") can become a file of `form`."""
    if form.format not in FORMATS[media]:
        raise RequestError(
            f"format {form.format} does not fit a model of {media}s; use one of {', '.join(FORMATS[media])}",
            "output_format",
        )
    if form.quality is not None and form.format == "MP4":
        raise RequestError(f"quality={form.quality} cannot be chosen for MP4 files; leave it out", "quality")
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

    def write(self, number: int, request: Request, result: Result, form: Form) -> MadeFile:
        """Encode and write output `number` of a presented `result`; StorageError when the disk refuses."""
        made = [*result.images, *result.videos][number]
        told = {**self.about, **_settings(request, result), "seed": result.seeds[number]}
        settings = told if form.tell else {}
        if form.format in ("JPEG", "WEBP") and len(json.dumps(settings)) > _ROOM:
            settings = {name: value for name, value in settings.items() if "prompt" not in name}
        content = _encode(made, form, settings)
        name = f"{request.id}-{self.name}-{number}.{form.format.lower()}"
        try:
            write_whole(self.folder / name, content)
        except OSError as error:
            raise StorageError(f"the result could not be written: {error.strerror}; free some space") from error
        width, height = made.frames[0].size if isinstance(made, Video) else made.size
        return MadeFile(
            name=name,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            seed=result.seeds[number],
            width=width,
            height=height,
            frames=len(made.frames) if isinstance(made, Video) else 1,
            fps=made.fps if isinstance(made, Video) else None,
        )


def preview(pixels: Any) -> bytes:
    """uint8 [H, W, 3] -> a JPEG."""
    buffer = io.BytesIO()
    from_pixels(pixels).save(buffer, "JPEG", quality=PREVIEW_QUALITY)
    return buffer.getvalue()


def _settings(request: Request, result: Result) -> dict[str, Any]:
    chosen = {name: value for name, value in asdict(result.params).items() if value not in (None, {})}
    prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    told: dict[str, Any] = {name: value for name, value in prompts.items() if value is not None}
    if request.images:
        told["images"] = [picture.digest for picture in request.images]
    return {**told, **{name: value for name, value in chosen.items() if name not in _OF_THE_CALL}}


def _encode(made: Image.Image | Video, form: Form, settings: Mapping[str, Any]) -> bytes:
    if isinstance(made, Video):
        return encode_video(made, settings)
    return encode_image(made, form.format, settings, form.quality)
