"""Sounds: samples with a rate, and WAV files that carry their settings."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from omnimuse.core.errors import RequestError
from omnimuse.media.sound import Sound, encode_sound, read_settings, save_sound, to_sound


def test_a_wav_file_holds_the_samples_of_every_channel_in_turn(tmp_path: Path) -> None:
    sound = to_sound(torch.tensor([[0.0, 0.5, 1.0], [-1.0, 2.0, -2.0]]), 8000)
    assert sound.seconds == 3 / 8000
    sound.save(tmp_path / "a.wav")
    with wave.open(str(tmp_path / "a.wav"), "rb") as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth(), file.getnframes()) == (2, 8000, 2, 3)
        samples = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2).T
    assert samples.tolist() == [[0, 16384, 32767], [-32767, 32767, -32767]]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("settings", [{"prompt": "rain"}, {"prompt": "a ü"}, {}])
def test_settings_come_back_from_the_file(suffix: str, settings: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_sound(Sound(np.zeros((1, 500), np.float32), 44100), path, settings)
    assert read_settings(path) == settings


def test_flac_keeps_the_samples_and_the_others_their_number(tmp_path: Path) -> None:
    sound = to_sound(torch.tensor([[0.0, 0.5, -0.25] * 100, [1.5, -1.0, 0.125] * 100]), 44100)
    for suffix in (".flac", ".ogg", ".mp3"):
        save_sound(sound, tmp_path / f"a{suffix}", {})
        samples, rate = soundfile.read(tmp_path / f"a{suffix}", dtype="float32")
        assert (samples.shape, rate) == ((300, 2), 44100)
        if suffix == ".flac":
            assert np.abs(samples.T - sound.samples.clip(-1, 1)).max() < 1e-4


def test_speech_fits_opus_and_pcm_is_the_samples_of_a_wav_file(tmp_path: Path) -> None:
    sound = to_sound(torch.sin(torch.arange(24_000) / 20)[None] / 2, 24_000)
    save_sound(sound, tmp_path / "a.opus", {"prompt": "rain"})
    assert read_settings(tmp_path / "a.opus") == {"prompt": "rain"}
    assert (soundfile.info(tmp_path / "a.opus").subtype, soundfile.info(tmp_path / "a.opus").samplerate) == (
        "OPUS",
        24_000,
    )
    with pytest.raises(RequestError, match="OPUS cannot hold 1 channels of 44100 samples a second"):
        encode_sound(Sound(sound.samples, 44_100), "OPUS", {})
    save_sound(sound, tmp_path / "a.wav", {})
    with wave.open(str(tmp_path / "a.wav"), "rb") as file:
        assert encode_sound(sound, "PCM", {}) == file.readframes(24_000)


@pytest.mark.parametrize("suffix", [".mp3", ".opus", ".ogg", ".aac"])
def test_what_others_decode_of_a_lossy_file_is_the_sound(suffix: str, tmp_path: Path) -> None:
    sound = Sound(spoken(48_000), 24_000)
    sound.save(tmp_path / f"a{suffix}")
    heard, rate = decoded(tmp_path / f"a{suffix}")
    wave = np.repeat(sound.samples[0], rate // 24_000)  # FFmpeg decodes Opus at 48 kHz, always
    assert rate == (48_000 if suffix == ".opus" else 24_000)
    assert abs(len(heard) - len(wave)) <= 0.15 * rate  # what an encoder puts before and behind it
    delay = max(0, len(heard) - len(wave))
    alike = np.correlate(np.pad(heard, (0, len(wave))), wave, "valid")[: delay + 2000].max()
    assert alike / np.linalg.norm(heard) / np.linalg.norm(wave) > 0.98


def spoken(count: int) -> np.ndarray:
    """Float32 [1, count] at 24 kHz: a tone that swells, with another that comes and goes, as no other part of it."""
    seconds = np.arange(count) / 24_000
    swell, tone = np.minimum(1, seconds), np.sin(2 * np.pi * (220 + 60 * seconds) * seconds)
    return ((0.4 * swell * tone + 0.1 * np.sin(2 * np.pi * 660 * seconds))[None]).astype(np.float32)


def decoded(path: Path) -> tuple[np.ndarray, int]:
    """What PyAV makes of a file: [n], and the rate."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return np.concatenate(frames, 1)[0].astype(np.float32), container.streams.audio[0].rate


def test_aac_of_two_channels_is_stereo_and_of_other_rates_refused(tmp_path: Path) -> None:
    two = np.concatenate([spoken(24_000), -spoken(24_000)])
    Sound(two, 24_000).save(tmp_path / "a.aac")
    with av.open(str(tmp_path / "a.aac")) as container:
        assert container.streams.audio[0].layout.name == "stereo"
    for sound in (Sound(two, 23_000), Sound(np.repeat(two, 2, axis=0), 24_000)):
        with pytest.raises(RequestError, match=r"AAC cannot hold [24] channels of 2[34]000 samples a second; use WAV"):
            encode_sound(sound, "AAC", {})


def test_a_wav_file_says_how_long_it_is(tmp_path: Path) -> None:
    save_sound(Sound(np.zeros((1, 5), np.float32), 44100), tmp_path / "a.wav", {"prompt": "rain"})
    content = (tmp_path / "a.wav").read_bytes()
    assert int.from_bytes(content[4:8], "little") == len(content) - 8


def test_a_file_without_settings_says_so(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "b.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(b"\0\0")
    for name in ("b.wav", "c.wav"):
        with pytest.raises(RequestError, match=r"carries no settings|cannot read"):
            read_settings(tmp_path / name)


@pytest.mark.parametrize("said", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000], ids=len)
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_settings_that_a_stranger_wrote_are_none(tmp_path: Path, said: bytes, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    mark = "x" * len(said)
    save_sound(Sound(np.zeros((1, 5), np.float32), 44100), file, {"prompt": mark})
    written = json.dumps({"prompt": mark}).encode()
    content = file.read_bytes()
    assert written in content
    file.write_bytes(content.replace(written, said.ljust(len(written))))
    with pytest.raises(RequestError, match="carries no settings"):
        read_settings(file)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"use one of .aac, .flac, .mp3, .ogg, .opus, .pcm, .wav"):
        save_sound(Sound(np.zeros((1, 1), np.float32), 8000), tmp_path / "a.aiff", {})


@pytest.mark.costly(turns=3)
def test_a_long_sound_fits_every_format(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2, 50 * 44100)).astype(np.float32)
    for suffix in (".flac", ".ogg", ".mp3"):
        save_sound(Sound(noise, 44100), tmp_path / f"a{suffix}", {"prompt": "rain"})
        assert soundfile.info(tmp_path / f"a{suffix}").frames == 50 * 44100


def test_a_rate_that_a_format_does_not_have_is_refused() -> None:
    with pytest.raises(RequestError, match="MP3 cannot hold 1 channels of 80 samples a second"):
        encode_sound(Sound(np.zeros((1, 100), np.float32), 80), "MP3", {})


def test_a_sound_is_float32_by_channels() -> None:
    with pytest.raises(ValueError, match="float32"):
        Sound(np.zeros(5, np.float32), 8000)
