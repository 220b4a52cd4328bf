"""What kinds of files an output may become: by medium, the suffix of a file and the format that it stands for.

The first one of a medium is the usual one. Light: a front process reads it. Who writes such files is in `finished.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PICTURES: Mapping[str, str] = MappingProxyType({".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"})
VIDEOS: Mapping[str, str] = MappingProxyType({".mp4": "MP4"})
SOUNDS: Mapping[str, str] = MappingProxyType(
    {
        ".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3",
        ".opus": "OPUS", ".aac": "AAC", ".pcm": "PCM",
    }
)  # fmt: skip
TEXT = "TEXT"
"""The format of what is a text: it becomes no file, but for one of the command line with the suffix `WRITTEN`."""
WRITTEN = ".txt"
FORMATS: Mapping[str, Mapping[str, str]] = MappingProxyType({"image": PICTURES, "video": VIDEOS, "audio": SOUNDS})
COMPRESSION: Mapping[str, int | None] = MappingProxyType(
    {"default": None, "auto": None, "low": 35, "medium": 55, "high": 90, "maximum": 100}
)
"""SGLang's words for the quality of a lossy picture's file, 1 to 100; None: ours."""


def usual(medium: str) -> str:
    """The format of files of `medium` where nobody chose one."""
    return next(iter(FORMATS[medium].values()))
