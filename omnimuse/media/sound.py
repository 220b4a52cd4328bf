"""Sound: samples with a rate, and files that carry the settings they were made with.

Called by the engine, the Python API and the command line. WAV files are written with the standard library, 16 bits a
sample, as players expect; settings travel as JSON in an `omni` chunk of the RIFF file, which players skip. FLAC, OGG
(Vorbis), MP3 and OPUS files are written by soundfile, an optional library, with the settings in the comment. PCM is the
samples of a WAV file and nothing else. AAC files, which hold no settings, are written by PyAV (`streamed.py`).
"""

from __future__ import annotations

import io
import json
import struct
import wave
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omnimuse.core.bounds import object_in
from omnimuse.core.errors import ConfigError, RequestError, reason
from omnimuse.media.destination import check_destination, write_whole
from omnimuse.media.formats import SOUNDS as FORMATS
from omnimuse.media.streamed import encode_aac, paced, pyav

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 65_536
"""Samples that are handed to an encoder at once: one of OGG overflowed its stack on more."""
PEAK = 32767  # of a sample of 16 bits
CHUNK = b"omni"
PLAIN = ("WAV", "PCM")
"""Formats that need no library."""
SUBTYPES = {"OPUS": ("OGG", "OPUS")}
"""Formats that soundfile knows as a container and what is in it."""


@dataclass(frozen=True)
class Sound:
    """`samples` [channels, n], float32 in [-1, 1]; `rate` of them a second."""

    samples: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.dtype != np.float32:
            raise ValueError(f"a sound is float32 [channels, n], got {self.samples.dtype} {list(self.samples.shape)}")

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return self.samples.shape[1] / self.rate

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        return (
            f'<audio controls src="data:audio/wav;base64,{b64encode(encode_sound(self, "WAV", {})).decode()}"></audio>'
        )

    def save(self, path: str | Path) -> None:
        """Write it to `path`, in the format that its suffix names."""
        save_sound(self, Path(path), {})


def to_sound(values: Tensor, rate: int) -> Sound:
    """Float [channels, n] -> a sound."""
    return Sound(values.detach().float().cpu().numpy(), rate)


def at_speed(sound: Sound, speed: float) -> Sound:
    """`sound`, `speed` times as fast at the same pitch, from samples of 16 bits; RequestError as `check_speed`."""
    if speed == 1:
        return sound
    whole = (sound.samples.clip(-1, 1) * PEAK).round().astype("<i2")
    return Sound(paced(whole, sound.rate, speed).astype(np.float32) / PEAK, sound.rate)


def check_sound_destination(path: Path) -> None:
    """To be asked before any work: RequestError unless a sound can be written at `path`, ConfigError without soundfile.

    (Those in `PLAIN` need no library, AAC needs PyAV.)
    """
    check_destination(path, FORMATS)
    check_library(FORMATS[path.suffix.lower()])


def check_library(format: str) -> None:
    """ConfigError where the library is not installed that writes files of `format`."""
    if format == "AAC":
        pyav()
    elif format not in PLAIN:
        library()


def save_sound(sound: Sound, path: Path, settings: Mapping[str, Any], *, replace: bool = True) -> None:
    """Write `sound` in the format its suffix names, with `settings` inside; `path` is never half-written.

    RequestError for an unknown suffix, ConfigError without soundfile, OSError when the disk refuses, FileExistsError
    where there is a file and it may not be replaced.
    """
    check_sound_destination(path)
    write_whole(path, encode_sound(sound, FORMATS[path.suffix.lower()], settings), replace=replace)


def encode_sound(sound: Sound, format: str, settings: Mapping[str, Any]) -> bytes:
    """The bytes of `sound` in one of `FORMATS`, 16 bits a sample where it has bits, with `settings` inside.

    Samples outside [-1, 1] are clipped. RequestError for a rate or a number of channels that the format does not have.
    """
    if format == "WAV":
        return _wav(sound, settings)
    if format == "PCM":
        return _pcm(sound)
    if format == "AAC":
        return encode_aac(sound.samples.clip(-1, 1), sound.rate)
    container, subtype = SUBTYPES.get(format, (format, None))
    buffer = io.BytesIO()
    encoder, channels = library(), len(sound.samples)
    samples = sound.samples.clip(-1, 1).T  # [n, channels]
    try:
        with encoder.SoundFile(buffer, "w", sound.rate, channels, subtype, format=container) as file:
            file.comment = json.dumps(settings, sort_keys=True)
            for start in range(0, len(samples), BLOCK):
                file.write(samples[start : start + BLOCK])
    except encoder.LibsndfileError as error:
        why = error.error_string.removeprefix("Error : ").rstrip(".")
        raise RequestError(
            f"{format} cannot hold {channels} channels of {sound.rate} samples a second ({why}); use WAV",
            "output_format",
        ) from None
    return buffer.getvalue()


def _pcm(sound: Sound) -> bytes:
    """Samples of 16 bits, low byte first, those of the channels in turn."""
    return (sound.samples.clip(-1, 1) * PEAK).round().astype("<i2").T.tobytes()  # [n, channels]


def _wav(sound: Sound, settings: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(sound.samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(_pcm(sound))
    return _with_chunk(buffer.getvalue(), json.dumps(settings, sort_keys=True).encode())


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `save_sound` wrote into the file; RequestError where there are none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path} as a sound: {reason(error)}", "path") from None
    at, settings = 12, None
    while content[:4] == b"RIFF" and at + 8 <= len(content):
        size = int(struct.unpack_from("<I", content, at + 4)[0])
        if content[at : at + 4] == CHUNK:
            settings = object_in(content[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    if content[:4] != b"RIFF":
        settings = _comment(content)
    if settings is None:
        raise RequestError(f"{path} carries no settings; only sounds that omnimuse saved do", "path")
    return settings


def _comment(content: bytes) -> dict[str, Any] | None:
    """The settings in the comment of a FLAC, OGG or MP3 file."""
    reader = library()
    try:
        with reader.SoundFile(io.BytesIO(content)) as file:
            return object_in(file.comment)
    except (reader.LibsndfileError, UnicodeDecodeError):
        return None


def library() -> Any:
    """soundfile; ConfigError where it is not installed."""
    try:
        return import_module("soundfile")
    except (ImportError, OSError):
        raise ConfigError('FLAC, OGG and MP3 files need soundfile: pip install "omnimuse[sound]"') from None


def _with_chunk(riff: bytes, content: bytes) -> bytes:
    """A RIFF file with one more chunk at its end, and its size put right."""
    padded = content + b" " * (len(content) % 2)  # spaces after JSON mean nothing, and chunks have even sizes
    whole = riff + CHUNK + struct.pack("<I", len(padded)) + padded
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]
