"""`omnimuse generate` with a model of videos: MP4 files with their settings, and refusals before any work."""

from __future__ import annotations

import io
import json
import shlex
from contextlib import chdir
from pathlib import Path

import av
import pytest

from omnimuse import DiffusionParams, Omni
from omnimuse.cli import main
from omnimuse.cli.app import parser_of
from omnimuse.cli.job import Job, plan
from omnimuse.core.errors import RequestError
from omnimuse.media.clip import open_clip
from omnimuse.media.picture import picture_of
from omnimuse.media.video import Video, read_settings, save_video
from tests.checkpoints import wan
from tests.checkpoints.wishes import film, photo

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


def test_seconds_of_a_video_become_frames_that_the_model_can_make(model: str, tmp_path: Path) -> None:
    def asked(*words: str) -> Job:
        return plan(parser_of("generate").read(["a", "-m", model, *words]), io.StringIO()).at_the_door()

    with chdir(tmp_path):
        assert asked("--seconds", "1", "--fps", "12").params.num_frames == 13
        assert asked("--seconds", "1", "--frames", "5").params.num_frames == 5
        with pytest.raises(RequestError, match=r"seconds=1e\+06 is too long for this model; use at most"):
            asked("--seconds", "1000000")
        assert asked("--seconds", "1000000", "--adjust").params.num_frames


def test_the_line_that_promises_the_same_video_again_makes_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        assert main(["generate", "a red circle " * 20, "-m", model, *SMALL, "--negative", "it's grey"]) == 0
        printed = capsys.readouterr().out
        [line] = [line for line in printed.splitlines() if line.endswith("# the same video again")]
        assert "# four others, made together" in printed
        assert main(shlex.split(line, comments=True)[1:]) == 0
        assert main(["generate", "--from", "video.mp4", "--fps", "24"]) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["video-001.mp4", "video-002.mp4", "video.mp4"]
        assert frames("video.mp4") == frames("video-001.mp4")
        assert len(frames("video-002.mp4")) == 5
        assert read_settings(Path("video-002.mp4")) == {**read_settings(Path("video.mp4")), "fps": 24.0}


def test_a_video_is_changed_and_its_settings_name_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        save_video(Video(film(64, 32, 7), 10.0), Path("old.mp4"), {})
        words = ["--video", "old.mp4", "--strength", "0.5", "--steps", "2", "--height", "32", "--dtype", "float32"]
        assert main(["generate", "a star", "-m", model, *words, "-o", "new.mp4", "--json"]) == 0
        [result] = json.loads(capsys.readouterr().out)["results"]
        made = {name: result["settings"][name] for name in ("num_frames", "fps", "width", "strength", "videos")}
        assert made == {
            "num_frames": 5, "fps": 10.0, "width": 64, "strength": 0.5, "videos": [open_clip("old.mp4").digest]
        }  # fmt: skip
        assert len(frames("new.mp4")) == 5
        assert main(["generate", "--from", "new.mp4"]) == 2
        assert "was made from a video, which is not in it; give it with --video" in capsys.readouterr().err
        assert main(["generate", "a star", "-m", model, "--video", "nowhere.mp4"]) == 2
        assert "there is no video nowhere.mp4" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that is given the first frame of a video, and perhaps the last."""
    return str(wan.build(tmp_path_factory.mktemp("cli") / "tiny", "A14B-I2V"))


def test_a_video_begins_and_ends_with_pictures_in_the_order_of_the_options(
    between: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [photo(70, 50), photo(50, 70)]
    with chdir(tmp_path):
        for name, picture in zip(("first.png", "last.png"), pictures, strict=True):
            picture.save(name)
        words = ["--image", "first.png", "--image", "last.png", "--frames", "5", "--height", "32", "--json"]
        common = ["--steps", "2", "--seed", "3", "--dtype", "float32"]
        assert main(["generate", "a star", "-m", between, *words, *common, "-o", "one.mp4"]) == 0
        [result] = json.loads(capsys.readouterr().out)["results"]
        assert result["settings"]["images"] == [picture_of(picture).digest for picture in pictures]
        assert result["settings"]["width"] == 32, "44.8 in the proportions of the first, rounded down"
        assert len(frames("one.mp4")) == 5


def test_a_model_that_begins_with_a_picture_says_so_and_refuses_words_alone(
    between: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", between, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tasks"], told["pictures"]) == (["image-to-video"], [1, 2])
    assert main(["generate", "a star", "-m", between, *SMALL]) == 2
    assert "0 pictures were given; wan needs at least 1" in capsys.readouterr().err


def test_the_python_face_takes_the_first_frame_and_tells_the_size_that_it_got(between: str) -> None:
    with Omni(between, dtype="float32", device="cpu") as omni:
        params = DiffusionParams(num_frames=5, num_inference_steps=2, seed=3, height=32)
        [result] = omni.generate({"prompt": "a star", "images": [photo(64, 32)]}, params, progress=False)
    [video] = result.videos
    assert (result.params.width, result.params.height, len(video.frames)) == (64, 32, 5)
    assert video.frames[0].size == (64, 32)


def test_what_a_model_of_pictures_cannot_do_is_refused(
    z_image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a", "-m", str(z_image_folder), "-o", "clip.mp4"]) == 2
    assert "clip.mp4 has the suffix '.mp4'; use one of .jpeg, .jpg, .png, .webp" in capsys.readouterr().err
    assert main(["generate", "a", "-m", str(z_image_folder), "--frames", "5"]) == 2
    assert "num_frames means nothing to" in capsys.readouterr().err
