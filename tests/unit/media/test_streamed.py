"""Sound at other speeds: the same pitch, as long as it should be, whatever pieces it comes in."""

from __future__ import annotations

import numpy as np
import pytest

from omnimuse.core.errors import RequestError
from omnimuse.media.sound import Sound, at_speed
from omnimuse.media.streamed import Tempo

RATE = 24_000
SPEEDS = (0.25, 0.3, 0.5, 0.8, 1.25, 2.0, 3.0, 4.0)


def tone(count: int) -> np.ndarray:
    """Samples of 16 bits [count] of 440 Hz."""
    return (12_000 * np.sin(2 * np.pi * 440 * np.arange(count) / RATE)).astype("<i2")


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_sound_is_so_much_shorter_and_has_the_same_pitch(speed: float) -> None:
    heard = at_speed(Sound(tone(3 * RATE)[None].astype(np.float32) / 32_767, RATE), speed)
    assert heard.samples.shape == (1, round(3 * RATE / speed))
    middle = heard.samples[0, 2000:-2000]
    loudest = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * RATE / len(middle)
    assert loudest == pytest.approx(440, abs=RATE / len(middle) + 0.5)
    assert np.sqrt((middle**2).mean()) == pytest.approx(12_000 / 32_767 / 2**0.5, rel=0.05)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("count", [0, 1, 100, 2500, 3 * RATE])
def test_pieces_of_any_length_are_the_whole(speed: float, count: int) -> None:
    pcm, made = tone(count).tobytes(), list[bytes]()
    for piece in (2 * count or 1, 2 * 777, 2 * 1920):
        tempo = Tempo(RATE, speed)
        told = [tempo.feed(pcm[at : at + piece]) for at in range(0, len(pcm), piece)]
        if count == 3 * RATE and piece < len(pcm):
            assert sum(map(len, told[: len(told) // 2])) > 0.3 * len(pcm) / speed, "it is told while it comes"
        made.append(b"".join(told) + tempo.end())
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 2 * round(count / speed)


def test_a_speed_that_cannot_be_is_refused() -> None:
    for speed in (0.2, 4.5, float("nan")):
        with pytest.raises(RequestError, match=r"choose from 0.25 to 4"):
            Tempo(RATE, speed)
