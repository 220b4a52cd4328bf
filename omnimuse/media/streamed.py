"""Sound by way of PyAV: AAC files, and samples that are played faster or slower without another pitch.

PyAV is an optional library, imported where it is needed. The frames of sound beside a video are made here, too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np

from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.speech import FASTEST, SLOWEST

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_BITS = 192_000
LAYOUTS = {1: "mono", 2: "stereo"}
"""What PyAV calls so many channels; of more, none of this is made."""
_STEP = 2.0
"""How much FFmpeg's filter changes a speed by at most without leaving samples out; further goes one behind another."""
_BLOCK = 1024
"""Samples that the filter is given at once: what it makes depends on that, and not on how they came here."""


def pyav() -> Any:
    """PyAV; ConfigError where it is not installed."""
    try:
        return import_module("av")
    except ImportError:
        what = "videos, AAC files and other speeds of sound need PyAV, which is not installed"
        raise ConfigError(f'{what}: pip install "omnimuse[video]"') from None


def frame_of(samples: np.ndarray, rate: int, at: int, format: str = "fltp") -> Any:
    """A frame of PyAV: of "fltp" [channels, n], of "s16" [1, n · channels], those of the channels in turn; `at` samples
    from the beginning.
    """
    channels = len(samples) if format == "fltp" else 1
    frame = pyav().AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=format, layout=LAYOUTS[channels])
    frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
    return frame


def encode_aac(samples: np.ndarray, rate: int) -> bytes:
    """Float32 [channels, n] in [-1, 1] -> AAC in frames of its own (ADTS), which hold no settings.

    RequestError for a rate or a number of channels that it does not have, ConfigError without PyAV.
    """
    if rate not in AAC_RATES or len(samples) not in LAYOUTS:
        raise RequestError(
            f"AAC cannot hold {len(samples)} channels of {rate} samples a second; use WAV", "output_format"
        )
    buffer = io.BytesIO()
    with pyav().open(buffer, "w", format="adts") as container:
        stream = container.add_stream("aac", rate=rate, layout=LAYOUTS[len(samples)])
        stream.bit_rate = AAC_BITS
        for at in range(0, samples.shape[1], _BLOCK):
            container.mux(stream.encode(frame_of(samples[:, at : at + _BLOCK], rate, at)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def check_speed(speed: float) -> None:
    """RequestError for a speed that cannot be, or where it cannot be had."""
    if not SLOWEST <= speed <= FASTEST:
        raise RequestError(f"speed={speed:g} cannot be; choose from {SLOWEST:g} to {FASTEST:g}", "speed")
    if speed != 1:
        try:
            pyav()
        except ConfigError as error:
            raise RequestError(f"speed={speed:g} cannot be here ({error}); leave it out", "speed") from None


class Tempo:
    """Samples of 16 bits of one channel, `speed` times as fast, at the pitch that they have (FFmpeg's `atempo`).

    They come in pieces of any length, and what leaves does not depend on these. Of n samples leave round(n / speed).
    """

    def __init__(self, rate: int, speed: float) -> None:
        check_speed(speed)
        self._rate, self._speed = rate, speed
        self._graph = pyav().filter.Graph()
        self._source = self._graph.add_abuffer(
            format="s16", sample_rate=rate, layout=LAYOUTS[1], time_base=Fraction(1, rate)
        )
        last = self._source
        for factor in _factors(speed):
            node = self._graph.add("atempo", f"{factor:.12g}")
            last.link_to(node)
            last = node
        self._sink = self._graph.add("abuffersink")
        last.link_to(self._sink)
        self._graph.configure()
        self._came, self._left = 0, 0  # samples
        self._waiting, self._made = b"", b""

    def feed(self, pcm: bytes) -> bytes:
        """What can be told once these samples are known."""
        self._waiting += pcm
        whole = len(self._waiting) // (2 * _BLOCK) * 2 * _BLOCK
        for at in range(0, whole, 2 * _BLOCK):
            self._push(self._waiting[at : at + 2 * _BLOCK])
        self._waiting = self._waiting[whole:]
        return self._taken(int(self._came / self._speed))

    def end(self) -> bytes:
        """The rest: FFmpeg's own end is some samples off, and what is missing there is silence."""
        if self._waiting:
            self._push(self._waiting)
        self._source.push(None)
        self._pull()
        due = round(self._came / self._speed)
        self._made = self._made.ljust(2 * (due - self._left), b"\0")
        return self._taken(due)

    def _push(self, pcm: bytes) -> None:
        samples = np.frombuffer(pcm, "<i2")[None]
        self._source.push(frame_of(samples, self._rate, self._came, "s16"))
        self._came += samples.shape[1]
        self._pull()

    def _pull(self) -> None:
        av = pyav()
        while True:
            try:
                self._made += self._sink.pull().to_ndarray().astype("<i2").tobytes()
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    def _taken(self, due: int) -> bytes:
        """What is made, no more than are `due` from the beginning on."""
        most = 2 * (due - self._left)
        told, self._made = self._made[:most], self._made[most:]
        self._left += len(told) // 2
        return told


def paced(samples: np.ndarray, rate: int, speed: float) -> np.ndarray:
    """Samples of 16 bits [channels, n], `speed` times as fast: each channel by itself, [channels, round(n / speed)]."""
    made = list[np.ndarray]()
    for channel in samples:
        tempo = Tempo(rate, speed)
        made.append(np.frombuffer(tempo.feed(channel.astype("<i2").tobytes()) + tempo.end(), "<i2"))
    return np.stack(made)


def _factors(speed: float) -> Iterator[float]:
    """Speeds whose product it is, none further from 1 than `_STEP`."""
    while not 1 / _STEP <= speed <= _STEP:
        factor = _STEP if speed > 1 else 1 / _STEP
        yield factor
        speed /= factor
    yield speed
