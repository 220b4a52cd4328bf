"""Sounds on the command line: names, kinds and lengths of files, windows, sounds to start from, the way back."""

from __future__ import annotations

import json
import wave
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnimuse.cli import main
from omnimuse.media.finished import read_settings
from tests.checkpoints import stable_audio

FEW = ["--steps", "3", "--seed", "7", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_audio.build(tmp_path_factory.mktemp("stable_audio") / "tiny")


def generate(folder: Path, *words: str) -> int:
    return main(["generate", "two green stars", "-m", str(folder), *FEW, *words])


def test_a_wav_file_is_valid_and_of_the_rate_and_length_that_were_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        assert generate(folder, "--seconds", "2.5") == 0
        with wave.open("sound.wav", "rb") as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (
                1000,
                2,
                2,
                2500,
            )
            samples = np.frombuffer(file.readframes(2500), "<i2")
    assert samples.std() > 100, "something is to be heard"
    assert np.mean(np.abs(samples) > 32000) < 0.01, "and nothing is cut off"
    assert "sound.wav  2.5 s, seed 7" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_the_kind_of_file_is_that_of_its_name_or_of_format(folder: Path, tmp_path: Path, suffix: str) -> None:
    with chdir(tmp_path):
        assert generate(folder, "--seconds", "1", "--format", suffix, "--quiet") == 0
        assert generate(folder, "--seconds", "1", "-o", f"named.{suffix}", "--quiet") == 0
        found = [soundfile.info(name) for name in (f"sound.{suffix}", f"named.{suffix}")]
        assert [(one.format, one.frames, one.samplerate) for one in found] == [(suffix.upper(), 1000, 1000)] * 2
        assert read_settings(Path(f"named.{suffix}"))["seconds"] == 1.0


def test_a_window_begins_where_it_was_asked_to_and_a_file_is_made_again_from_its_settings(
    folder: Path, tmp_path: Path
) -> None:
    with chdir(tmp_path):
        assert generate(folder, "--seconds", "1", "--start", "0.5", "--quiet") == 0
        assert generate(folder, "--seconds", "1", "-o", "other.wav", "--quiet") == 0
        assert main(["generate", "--from", "sound.wav", "--quiet"]) == 0
        first, other, again = (soundfile.read(name)[0] for name in ("sound.wav", "other.wav", "sound-001.wav"))
    assert read_settings(tmp_path / "sound.wav")["extra"] == {"start": 0.5}
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_sound_to_start_from_is_read_and_asked_for_when_its_file_is_made_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        assert generate(folder, "--seconds", "1", "-o", "first.flac", "--quiet") == 0
        assert generate(folder, "--audio", "first.flac", "--strength", "0.4", "--seconds", "1", "--json") == 0
        assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["results"][0]["error"] is None
        assert main(["generate", "--from", "sound.wav"]) == 2
        assert "was made from a sound, which is not in it; give it with --audio" in capsys.readouterr().err
        assert main(["generate", "--from", "sound.wav", "--audio", "first.flac", "--quiet"]) == 0
        assert np.array_equal(soundfile.read("sound.wav")[0], soundfile.read("sound-001.wav")[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "9"], "seconds=9.0 is out of range; use 0.001 to 3.2"),
        (["--format", "png"], r"use one of .aac, .flac, .mp3, .ogg, .opus, .pcm, .wav"),
        (["-o", "a.wav", "--format", "mp3"], "--format mp3 and the name a.wav say different things"),
        (["--audio", "nowhere.wav"], "there is no sound nowhere.wav"),
        (["--strength", "0.5"], "there is no sound; give one"),
        (["--size", "64x64"], "a sound has no sides"),
        (["--image", "x.png"], "there is no picture x.png"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with chdir(tmp_path):
        assert generate(folder, *words) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_what_a_model_of_sound_takes_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "(text-to-audio, audio-to-audio)" in told
    assert "sounds with a prompt: 1" in told
    assert main(["explain", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "at most 3.2 s" in told and "1000 samples a second in 2 channels" in told
    assert "a side" not in told
    assert "our stochastic DPM-Solver++" in told
