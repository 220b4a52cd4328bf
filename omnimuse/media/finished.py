"""Finished outputs as files: who checks, writes and reads those of each medium.

One output is one file, or one for each of its pictures. Called by whoever keeps results: the command line and the
workers of a server. A medium is added here, a format in `formats.py`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omnimuse.core.errors import RequestError
from omnimuse.core.output import Part
from omnimuse.media import image, sound, video
from omnimuse.media.destination import write_whole
from omnimuse.media.formats import FORMATS

_CHECKS: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {
        "image": image.check_picture_destination,
        "video": video.check_video_destination,
        "audio": sound.check_sound_destination,
    }
)
_READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = MappingProxyType(
    {"image": image.read_settings, "video": video.read_settings, "audio": sound.read_settings}
)


def suffixes() -> tuple[str, ...]:
    """The suffixes of all files that an output may become."""
    return tuple(suffix for formats in FORMATS.values() for suffix in formats)


def check_file(path: Path, medium: str) -> None:
    """To be asked before any work: RequestError unless an output of `medium` can be written at `path`, ConfigError
    without the library that such a file needs.
    """
    _CHECKS[medium](path)


def files(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """What each file of an output holds: of several pictures one each, of everything else all of it."""
    return [[part] for part in parts] if all(part.medium == "image" for part in parts) else [parts]


def encode(parts: Sequence[Part], format: str, settings: Mapping[str, Any], quality: int | None = None) -> bytes:
    """The bytes of one file of `format` that holds `parts`, with `settings` inside; `quality` is of lossy pictures.

    The first part is what the file is. Sound beside a video becomes its track; a text beside it is in no file.
    """
    first, rest = parts[0], {part.medium: part.data for part in parts[1:] if part.medium != "text"}
    if first.medium == "image" and not rest:
        return image.encode_image(first.data, format, settings, quality)
    if first.medium == "audio" and not rest:
        return sound.encode_sound(first.data, format, settings)
    if first.medium == "video" and not rest.keys() - {"audio"}:
        return video.encode_video(first.data, settings, rest.get("audio"))
    raise RequestError(f"there is no file for {' and '.join(part.medium for part in parts)} in one", "output_format")


def save(
    parts: Sequence[Part],
    path: Path,
    settings: Mapping[str, Any],
    *,
    replace: bool = True,
    quality: int | None = None,
) -> None:
    """Write one file that holds `parts` in the format that the suffix of `path` names, with `settings` inside;
    `quality` is of lossy pictures.

    It is written whole or not at all. RequestError for an unknown suffix, ConfigError without the library that it
    needs, OSError when the disk refuses, FileExistsError where there is a file that may not be replaced.
    """
    medium = parts[0].medium
    check_file(path, medium)
    content = encode(parts, FORMATS[medium][path.suffix.lower()], settings, quality)
    write_whole(path, content, replace=replace)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings inside a file that `save` wrote; RequestError where there are none."""
    suffix = path.suffix.lower()
    for medium, formats in FORMATS.items():
        if suffix in formats:
            return _READERS[medium](path)
    return image.read_settings(path)
