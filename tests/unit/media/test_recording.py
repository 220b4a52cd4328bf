"""Sounds that people give: what is read, at which rate it comes out, and what is believed of a stranger's."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Recording
from omnimuse.media.foreign_sound import HEAD, RecordingLimits, SoundError, believed, is_sound, read_recording
from omnimuse.media.recording import open_sound, recording_of, resampled, samples_of
from omnimuse.media.sandbox import Sandbox
from omnimuse.media.sound import Sound, encode_sound

KINDS = ("WAV", "FLAC", "OGG", "MP3")


def tone(rate: int, hertz: float, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)
    return np.repeat(wave[None], channels, axis=0).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_file_of_every_kind_is_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Sound(tone(16000, 440, channels=2), 16000).save(path)
    found = open_sound(path)
    assert (found.rate, found.channels) == (16000, 2)
    assert found.seconds == pytest.approx(0.5, abs=0.1)
    heard = np.frombuffer(found.pcm, "<i2").reshape(-1, 2)
    assert heard[2000:6000].std() == pytest.approx(0.5 / 2**0.5 * 32767, rel=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.wav", "there is no sound nowhere.wav"),
        (7, "a sound is a Sound or a file's name, got int"),
        (Path(__file__), "cannot read .*test_recording.py as a sound"),
    ],
)
def test_what_is_no_sound_is_refused(given: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_sound(given)


def test_a_sound_that_nobody_can_use_is_refused() -> None:
    with pytest.raises(RequestError, match="no samples"):
        recording_of(np.zeros((1, 0), np.float32), 8000)
    with pytest.raises(RequestError, match="80 samples a second; 1000 to 384000 are read"):
        recording_of(np.zeros((1, 9), np.float32), 80)
    with pytest.raises(RequestError, match="9 channels; at most 8"):
        recording_of(np.zeros((9, 9), np.float32), 8000)


@pytest.mark.parametrize(
    ("rate", "wanted"), [(48000, 44100), (44100, 48000), (8000, 44100), (44100, 8000), (22050, 44100)]
)
def test_a_tone_keeps_its_height_and_loudness_at_another_rate(rate: int, wanted: int) -> None:
    found = resampled(tone(rate, 1000), rate, wanted)[0]
    assert len(found) == -(-rate // 2 * wanted // rate)
    middle = slice(len(found) // 4, 3 * len(found) // 4)
    expected = tone(wanted, 1000)[0][: len(found)]
    assert np.abs(found[middle] - expected[middle]).max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_left_out_and_not_folded_down() -> None:
    """A tone of 15 kHz at 16 kHz would be heard at 1 kHz."""
    found = resampled(tone(44100, 15000), 44100, 16000)[0]
    assert np.abs(found[1000:-1000]).max() < 5e-3


def test_resampling_is_near_another_program() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32)
    smooth = scipy.signal.sosfiltfilt(scipy.signal.butter(8, 0.5, output="sos"), noise).astype(np.float32)
    found, expected = resampled(smooth, 48000, 44100), scipy.signal.resample(smooth, 3675, axis=1)
    assert np.abs(found - expected)[:, 200:-200].max() < 5e-3


def test_channels_become_those_of_the_model() -> None:
    one, two = (
        recording_of(tone(8000, 440), 8000),
        recording_of(np.stack([tone(8000, 440)[0], 0 * tone(8000, 440)[0]]), 8000),
    )
    assert np.array_equal(*samples_of(one, 8000, 2))
    assert np.allclose(samples_of(two, 8000, 1)[0], samples_of(one, 8000, 1)[0] / 2, atol=1e-4)
    six = recording_of(np.concatenate([tone(8000, 440 + 50 * i) for i in range(6)]), 8000)
    assert np.array_equal(samples_of(six, 8000, 2), samples_of(six, 8000, 6)[:2])


# -- strangers -------------------------------------------------------------------------------------------------------


def ask(content: bytes, limits: RecordingLimits | None = None) -> Recording:
    async def main() -> Recording:
        sandbox = Sandbox()
        try:
            return await read_recording(sandbox, content, limits)
        finally:
            await sandbox.close()

    return asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_strangers_sound_is_decoded_in_a_locked_child(kind: str) -> None:
    sound = Sound(tone(22050, 440, seconds=2.0, channels=2), 22050)
    found = ask(encode_sound(sound, kind, {"prompt": "x" * 1000}), RecordingLimits(milliseconds=500))
    assert (found.rate, found.channels) == (22050, 2)
    assert found.seconds == pytest.approx(0.5, abs=1e-3)
    heard = np.frombuffer(found.pcm, "<i2")
    assert heard[4000:].std() == pytest.approx(0.5 / 2**0.5 * 32767, rel=0.05)


def test_no_more_is_kept_than_may_be() -> None:
    sound = encode_sound(Sound(tone(8000, 440, seconds=5.0), 8000), "FLAC", {})
    assert len(ask(sound, RecordingLimits(keep_bytes=10_000)).pcm) == 10_000


@pytest.mark.parametrize(
    "content",
    [
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"fLaC" + bytes(200),
        b"OggS" + bytes(200),
        b"ID3" + bytes(200),
        encode_sound(Sound(tone(8000, 440), 8000), "FLAC", {})[:60],
    ],
)
def test_a_damaged_file_is_refused(content: bytes) -> None:
    with pytest.raises(SoundError, match="cannot be read: its file is damaged"):
        ask(content)


def test_other_files_are_refused_unread() -> None:
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"MThd"):
        assert not is_sound(content)
        with pytest.raises(SoundError, match=r"is empty|is no WAV, FLAC, OGG or MP3"):
            ask(content)


def test_a_child_that_was_taken_over_is_not_believed() -> None:
    limits = RecordingLimits(keep_bytes=100)
    good = HEAD.pack(8000, 2) + bytes(8)
    assert believed(good, limits) == Recording(8000, 2, bytes(8))
    for answer in (b"", good[:5], good + b"\0", HEAD.pack(8000, 0) + bytes(8), HEAD.pack(8000, 2)):
        with pytest.raises(SoundError):
            believed(answer, limits)
    for rate, channels, size in ((10, 2, 8), (2**31, 2, 8), (8000, 99, 198), (8000, 2, 104)):
        with pytest.raises(SoundError):
            believed(HEAD.pack(rate, channels) + bytes(size), limits)


def test_a_wav_file_of_ours_is_read_back_by_others() -> None:
    samples = tone(44100, 440, channels=2)
    content = encode_sound(Sound(samples, 44100), "WAV", {"prompt": "rain"})
    read, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == 44100
    assert np.abs(read.T - samples).max() < 1e-4
