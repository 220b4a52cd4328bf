"""Sounds that people give: opened, kept as samples of 16 bits, and brought to the rate and channels of a model.

Called by the Python API, the command line, the process that decodes what strangers send, and the stage that encodes
them. Files from strangers must not be opened here in a process that matters (see `foreign.py`). Optional libraries read
the files: soundfile those of sound, PyAV what is heard in videos, and in files of their kinds without pictures (.m4a).

Letters: c channels, n samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from omnimuse.core.errors import RequestError, reason
from omnimuse.core.request import Recording
from omnimuse.media.foreign_clip import kind_of
from omnimuse.media.foreign_sound import CHANNELS, RATES
from omnimuse.media.sound import Sound, library
from omnimuse.media.streamed import pyav

READ = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "W64", "RF64")
"""Formats that are read."""
PEAK = 32767
MOST = 60 * 60
"""Seconds of a sound that is taken; models make far less."""
TAPS = 32
"""Zero crossings of the resampling filter on each side."""


def open_sound(given: Any) -> Recording:
    """A recording from a `Sound`, a file's name, or a `Recording`; RequestError says what cannot be one."""
    if isinstance(given, Recording):
        return given
    if isinstance(given, Sound):
        return recording_of(given.samples, given.rate)
    if not isinstance(given, str | Path):
        raise RequestError(f"a sound is a Sound or a file's name, got {type(given).__name__}", "sounds")
    if not Path(given).is_file():
        raise RequestError(f"there is no sound {given}; give the name of a file that exists", "sounds")
    with Path(given).open("rb") as file:
        filmed = kind_of(file.read(1024)) is not None
    return _track(Path(given)) if filmed else read_sound(given, str(given))


def _track(path: Path) -> Recording:
    if (found := read_track(path.read_bytes(), name=str(path))) is None:
        raise RequestError(f"nothing is heard in {path}; give a file with a sound in it", "sounds")
    return found


def read_sound(file: Any, name: str = "the sound") -> Recording:
    """The recording in `file`, of which at most `MOST` seconds are read; RequestError if it is none."""
    reader = library()
    try:
        with reader.SoundFile(file) as opened:
            if opened.format not in READ:
                raise RequestError(f"{name} is a file of {opened.format}; use one of {', '.join(READ)}", "sounds")
            samples = opened.read(int(MOST * opened.samplerate), dtype="float32", always_2d=True)  # [n, c]
            return recording_of(samples.T, opened.samplerate)
    except reader.LibsndfileError as error:  # its own words have the address of what was to be opened
        why, kinds = error.error_string.rstrip("."), ", ".join(READ)
        raise RequestError(f"cannot read {name} as a sound: {why}; use a file of one of {kinds}", "sounds") from None
    except (ValueError, OverflowError) as error:
        raise RequestError(f"cannot read {name} as a sound: {error}", "sounds") from None


def read_track(content: bytes, most: float = MOST, name: str = "the video") -> Recording | None:
    """What is heard in the first `most` seconds of the video in `content`; None where its file has no sound, or is no
    video at all. RequestError for a track that cannot be read.
    """
    av, kind = pyav(), kind_of(content)
    if kind is None:
        return None
    try:
        with av.open(io.BytesIO(content), format=kind, metadata_errors="ignore") as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1  # a process that is locked in can start no thread
            channels = stream.channels if 0 < stream.channels <= CHANNELS else 2
            layout = None if channels == stream.channels else "stereo"
            made = av.AudioResampler(format="s16", layout=layout)  # the format alone: its rate stays
            pieces, wanted = list[bytes](), int(most * stream.rate) * channels * 2
            for piece in _pieces(made, container.decode(stream)):
                pieces.append(piece)
                wanted -= len(piece)
                if wanted <= 0:
                    break
            pcm = b"".join(pieces)
            return Recording(stream.rate, channels, pcm[: len(pcm) + min(wanted, 0)]) if pcm else None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise RequestError(f"cannot read the sound of {name}: {reason(error)}", "videos") from None


def _pieces(made: Any, frames: Iterator[Any]) -> Iterator[bytes]:
    """The samples of `frames`, of 16 bits, those of the channels in turn, low byte first."""
    for frame in frames:
        for whole in made.resample(frame):
            yield np.ascontiguousarray(whole.to_ndarray()).astype("<i2").tobytes()


def recording_of(samples: np.ndarray, rate: int) -> Recording:
    """Floats [c, n] in [-1, 1] as a recording; RequestError for one without samples, or of a rate that nobody uses."""
    if not samples.size:
        raise RequestError("the sound has no samples; give one that can be heard", "sounds")
    if len(samples) > CHANNELS:
        raise RequestError(f"the sound has {len(samples)} channels; at most {CHANNELS} are read", "sounds")
    if not RATES[0] <= rate <= RATES[1]:
        raise RequestError(f"the sound has {rate} samples a second; {RATES[0]} to {RATES[1]} are read", "sounds")
    whole = np.nan_to_num(samples).clip(-1, 1) * PEAK
    return Recording(rate, len(samples), whole.round().astype("<i2").T.tobytes())


def samples_of(recording: Recording, rate: int, channels: int) -> np.ndarray:
    """Float32 [channels, n] at `rate` samples a second. One channel is heard from all; of several one is their mean."""
    whole = np.frombuffer(recording.pcm, "<i2").reshape(-1, recording.channels).T  # [c, n]
    samples = whole.astype(np.float32) / PEAK
    if recording.channels != channels:
        one = samples.mean(axis=0, keepdims=True)
        samples = samples[:channels] if recording.channels > channels > 1 else np.repeat(one, channels, axis=0)
    return np.ascontiguousarray(resampled(samples, recording.rate, rate), np.float32)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """[c, n] of `rate` samples a second as [c, ceil(n wanted / rate)], by a windowed sinc below both Nyquist limits."""
    if rate == wanted:
        return samples
    common = gcd(rate, wanted)
    up, down = wanted // common, rate // common
    count, cut = -(-samples.shape[1] * up // down), min(1.0, wanted / rate)
    reach = int(np.ceil(TAPS / cut))
    padded = np.pad(samples.astype(np.float64), ((0, 0), (reach, reach + 1)))
    found = np.empty((len(samples), count))
    offsets = np.arange(-reach, reach + 1)
    for phase in range(min(up, count)):  # outputs of one phase share their weights
        places = (phase + np.arange(-(-(count - phase) // up)) * up) * down
        at = offsets - (places[0] % up) / up
        weights = cut * np.sinc(cut * at) * np.where(abs(at) < reach, np.cos(np.pi * at / (2 * reach)) ** 2, 0)
        first = places // up
        found[:, phase::up] = sum(weight * padded[:, first + tap] for tap, weight in enumerate(weights))
    return found.astype(np.float32)
