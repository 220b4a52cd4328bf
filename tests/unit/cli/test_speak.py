"""`omnimuse speak`: a text becomes a sound file, with a tiny model."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from omnimuse import Omni
from omnimuse.cli.app import main
from omnimuse.media.recording import open_sound, samples_of
from omnimuse.media.sound import read_settings
from tests.checkpoints import qwen3_tts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_tts.build(tmp_path_factory.mktemp("speak") / "tiny")


def speak(folder: Path, text: str, *options: str) -> int:
    fixed = ("--dtype", "float32", "--device", "cpu", "--max-tokens", "12", "--seed", "2")
    return main(["speak", text, "-m", str(folder), *fixed, *options])


def test_a_text_becomes_a_file_that_knows_how_it_was_made(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hello.wav"
    assert speak(folder, "two yellow stars", "--voice", "eric", "-o", str(file)) == 0
    assert "0.11 s of speech" in capsys.readouterr().out, "eleven frames of 24 samples, 2400 a second"
    settings = read_settings(file)
    assert (settings["prompt"], settings["seed"], settings["extra"]["voice"]) == ("two yellow stars", 2, "eric")
    assert samples_of(open_sound(file), 2400, 1).shape == (1, 11 * 24)
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        [again] = omni.generate(settings["prompt"], voice="eric", max_tokens=12, seed=2, progress=False)
        again.audios[0].save(tmp_path / "again.wav")
    assert (samples_of(open_sound(tmp_path / "again.wav"), 2400, 1) == samples_of(open_sound(file), 2400, 1)).all()


def test_what_is_spoken_may_be_played_faster(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "hello.wav"
    plotted = ("--plot", str(tmp_path / "where.png"))
    assert speak(folder, "two yellow stars", "--voice", "eric", "--speed", "2", "-o", str(file), *plotted) == 0
    with Image.open(tmp_path / "where.png") as shown:
        assert shown.height > 100, "a bar for each stage and step, and lines of blocks"
    assert samples_of(open_sound(file), 2400, 1).shape == (1, 11 * 12)
    assert read_settings(file)["speed"] == 2
    assert "0.06 s of speech" in capsys.readouterr().out


def test_where_its_time_went_is_told_as_a_line_or_as_json_and_recorded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, trace = ("two yellow stars", "--voice", "eric"), tmp_path / "trace.json.gz"
    assert speak(folder, *said, "-o", str(tmp_path / "one.wav")) == 0
    out, told = capsys.readouterr()
    assert re.search(r"^time: imports .*, talk .*, decode .* in all$", out, re.MULTILINE) and "ms a run" not in out
    assert told == ""
    assert speak(folder, *said, "-o", str(tmp_path / "two.wav"), "--json", "--profile", str(trace)) == 0
    record = json.loads(capsys.readouterr().out)
    [row] = record["results"]
    assert (row["files"], row["seed"], row["lasts"]) == ([str(tmp_path / "two.wav")], 2, pytest.approx(0.11))
    assert 0 < row["first_sound"] < row["made_in"] < record["seconds"]["total"]
    assert len(row["steps"]["talk"]) == 12 and row["blocks"] and all(sum(runs) > 0 for runs in row["blocks"].values())
    recorded = {each["name"] for each in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert row["blocks"].keys() <= recorded and {"decode", "vae.decode"} <= recorded
    assert speak(folder, *said, "-o", str(tmp_path / "three.wav"), "--profile", str(trace)) == 2
    assert f"--profile {trace} is there already" in capsys.readouterr().err


@pytest.mark.costly
def test_what_is_said_is_kept_where_there_is_no_room_for_its_recording(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hello.wav"

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("omnimuse.engine.recordings.merge", Mock(side_effect=full))
    assert speak(folder, "a star", "-o", str(file), "--profile", str(tmp_path / "trace.json.gz")) == 1
    out, told = capsys.readouterr()
    assert read_settings(file)["prompt"] == "a star" and str(file) in out
    assert os.strerror(errno.ENOSPC) in told


def test_a_text_comes_from_stdin_and_no_file_is_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hello.wav"
    file.write_bytes(b"mine")
    monkeypatch.setattr("sys.stdin", io.StringIO("a star\n"))
    assert speak(folder, "-", "-o", str(file)) == 0
    assert file.read_bytes() == b"mine"
    [made] = set(tmp_path.iterdir()) - {file}
    assert read_settings(made)["prompt"] == "a star"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--voice", "vivien"), "voice='vivien' is not known to this checkpoint; did you mean 'vivian'?"),
        (("--language", "klingon"), "use one of auto, english, chinese"),
        (("-o", "hello.txt"), ".txt"),
        (("--speed", "9"), "speed=9 cannot be; choose from 0.25 to 4"),
        (("--temperature", "-1"), "omnimuse: --temperature -1.0 is not allowed; use a number from 0 to 100"),
        (("--max-tokens", "0"), "omnimuse: --max-tokens 0 is not allowed; use a number of at least 1"),
        (("--instructions", "a" * 5000), "omnimuse: --instructions: there are 5000 characters; at most 4000"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    folder: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speak(folder, "a star", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("model", "command"), [("omnimuse/shapes", "generate"), ("omnimuse/shapes-chat", "chat")])
def test_a_model_that_does_not_speak_names_the_command_that_it_is_for(
    model: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["speak", "a star", "-m", model]) == 2
    assert f"does not speak; use `omnimuse {command}`" in capsys.readouterr().err
