"""A request of a tiny checkpoint as somebody types it: options of the command line, and the files that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from PIL import Image

from omnimuse.cli.app import option_of
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Recording
from omnimuse.media.recording import samples_of
from omnimuse.media.sound import Sound, save_sound
from omnimuse.media.video import Video, save_video
from tests.checkpoints.wishes import Wish

SAID = {field.name for field in fields(DiffusionParams)} - {"output_type", "extra"}


def words_of(params: DiffusionParams, negative: str | None = None) -> list[str]:
    """Options that choose `params`."""
    chosen = {option_of(name): getattr(params, name) for name in sorted(SAID)} | {"--negative": negative}
    extra = dict(params.extra or {})  # type: ignore[call-overload]
    settings = [word for name, value in extra.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return [*(str(word) for pair in chosen.items() if pair[1] is not None for word in pair), *settings]


def files_of(wish: Wish, folder: Path) -> list[str]:
    """Options that name what comes with a wish, in files in `folder`."""
    return [word for option, file in _files(wish, folder) for word in (option, str(file))]


def _files(wish: Wish, folder: Path) -> Iterator[tuple[str, str | Path]]:
    for number, picture in enumerate(wish.images):
        picture.save(file := folder / f"{number}.png")
        yield "--image", file
    for option, frames in (("--video", wish.video), ("--mask", wish.masks)):
        if frames:
            _film(frames, file := folder / f"{option[2:]}.mp4")
            yield option, file
    if wish.mask is not None:
        wish.mask.save(file := folder / "mask.png")
        yield "--mask", file
    if wish.pad is not None:
        yield "--pad", ",".join(map(str, wish.pad))
    if wish.sound is not None:
        _sound(wish.sound, file := folder / "sound.wav")
        yield "--audio", file


def _film(frames: tuple[Image.Image, ...], file: Path) -> None:
    save_video(Video(tuple(frame.convert("RGB") for frame in frames), 8.0), file, {})


def _sound(sound: Recording, file: Path) -> None:
    save_sound(Sound(samples_of(sound, sound.rate, sound.channels), sound.rate), file, {})
