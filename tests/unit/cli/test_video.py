"""`omnimuse generate` with a model of videos: MP4 files with their settings, and refusals before any work."""

from __future__ import annotations

import json
import shlex
from contextlib import chdir
from pathlib import Path

import av
import pytest

from omnimuse.cli import main
from omnimuse.media.video import read_settings
from tests.checkpoints import wan

SMALL = ["--size", "32x32", "--frames", "5", "--fps", "12", "--steps", "2", "--seed", "3", "--dtype", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(wan.build(tmp_path_factory.mktemp("cli") / "tiny", "2.1"))


def test_a_video_is_written_with_its_settings_and_rate(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        assert main(["generate", "a red circle", "-m", model, *SMALL, "-n", "2"]) == 0
    printed = capsys.readouterr().out
    assert "video-001.mp4  32x32, 5 frames, seed 3" in printed
    assert "decode" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["video-001.mp4", "video-002.mp4"]
    settings = read_settings(tmp_path / "video-002.mp4")
    assert (settings["prompt"], settings["seed"], settings["num_frames"], settings["fps"]) == ("a red circle", 4, 5, 12)
    with av.open(str(tmp_path / "video-001.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width) == (5, 12, 32)


def test_the_line_that_promises_the_same_video_again_makes_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        assert main(["generate", "a red circle " * 20, "-m", model, *SMALL, "--negative", "it's grey"]) == 0
        printed = capsys.readouterr().out
        [line] = [line for line in printed.splitlines() if line.endswith("# the same picture again")]
        assert main(shlex.split(line, comments=True)[1:]) == 0
        assert main(["generate", "--from", "video.mp4", "--fps", "24"]) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["video-001.mp4", "video-002.mp4", "video.mp4"]
        assert frames("video.mp4") == frames("video-001.mp4")
        assert len(frames("video-002.mp4")) == 5
        assert read_settings(Path("video-002.mp4")) == {**read_settings(Path("video.mp4")), "fps": 24.0}


def frames(file: str) -> list[bytes]:
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def test_json_and_preview_work_for_videos(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "clip.mp4"
    assert main(["generate", "a star", "-m", model, *SMALL, "-o", str(path), "--json", "--preview"]) == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["files"] == [str(path)]
    assert result["settings"]["num_frames"] == 5
    assert path.is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "clip.png"], "clip.png has the suffix '.png'; use one of .mp4"),
        (["--frames", "6"], "num_frames=6 is not 4k + 1; use 5 or 9"),
        (["--fps", "0"], "fps=0.0 is out of range"),
        (["--set", "guidance_scale_2=3"], "this checkpoint has one network"),
    ],
)
def test_what_a_model_of_videos_cannot_do_is_refused(
    model: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a", "-m", model, *words]) == 2
    assert message in capsys.readouterr().err


def test_what_a_model_of_pictures_cannot_do_is_refused(
    z_image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a", "-m", str(z_image_folder), "-o", "clip.mp4"]) == 2
    assert "clip.mp4 has the suffix '.mp4'; use one of .jpeg, .jpg, .png, .webp" in capsys.readouterr().err
    assert main(["generate", "a", "-m", str(z_image_folder), "--frames", "5"]) == 2
    assert "num_frames means nothing to" in capsys.readouterr().err
