"""Pictures, sounds and videos on the command line: `chat` and `speak` with every family that converses or speaks, what
each of them can be shown, and files that are none.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from omnimuse import Omni
from omnimuse.cli.app import main
from omnimuse.core.params import DiffusionParams
from omnimuse.media.clip import open_watched
from omnimuse.media.picture import open_picture
from omnimuse.media.recording import open_sound, samples_of
from omnimuse.media.sound import Sound, read_settings
from omnimuse.media.video import Video, save_video
from tests.checkpoints import bagel, glm_image, qwen3, qwen3_omni, qwen3_tts, qwen25_omni, talk_and_draw
from tests.checkpoints.wishes import chord, film, photo
from tests.once import Once

ALL = frozenset({"picture", "sound", "video"})
TAKES: dict[str, tuple[Callable[[Path], Path], frozenset[str]]] = {
    "qwen3": (qwen3.build, frozenset()),
    "qwen3_omni": (qwen3_omni.build, ALL),
    "qwen25_omni": (qwen25_omni.build, ALL),
    "bagel": (bagel.build, frozenset({"picture"})),
    "talk_and_draw": (talk_and_draw.build, frozenset()),
}
"""Models that are talked with, and what they can be shown."""
SPEAKS = {"base": partial(qwen3_tts.build, kind="base"), "custom_voice": qwen3_tts.build}
OPENED = {
    "picture": ("image", "images", open_picture),
    "sound": ("audio", "sounds", open_sound),
    "video": ("video", "videos", open_watched),
}
"""What a part of a message that shows it is called, where it stands in a prompt, and how it is opened."""
FIXED = ("--dtype", "float32", "--device", "cpu", "--max-tokens", "6", "--seed", "3")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind, some that are none, and a long sound."""
    folder = tmp_path_factory.mktemp("shown")
    photo(40, 24).save(folder / "picture.png")
    for name, seconds in (("sound", 1.5), ("brief", 0.2), ("long", 200)):
        Sound(samples_of(chord(16_000, seconds, 1), 16_000, 1), 16_000).save(folder / f"{name}.wav")
    save_video(Video(film(24, 16, 6), 2.0), folder / "video.mp4", {})
    (folder / "note.txt").write_text("a heron")
    (folder / "empty").write_bytes(b"")
    return folder


def file_of(files: Path, medium: str) -> Path:
    [file] = files.glob(f"{medium}.*")
    return file


def chat(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("what is this\n"))
    return main(["chat", str(folder), "--temperature", "0", *FIXED, *options])


def speak(folder: Path, *options: str) -> int:
    return main(["speak", "a star", "-m", str(folder), *FIXED, *options])


@pytest.mark.parametrize("medium", sorted(ALL))
@pytest.mark.parametrize("model", TAKES)
def test_a_model_is_shown_what_it_takes_and_all_else_is_refused_by_its_option(
    model: str,
    medium: str,
    files: Path,
    once: Once,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, takes = TAKES[model]
    folder, file = once.folder(model, build), file_of(files, medium)
    code = chat(folder, monkeypatch, f"--{medium}", str(file))
    out, told = capsys.readouterr()
    if medium not in takes:
        assert (code, out) == (2, "")
        assert told.endswith(f"; leave out --{medium}\n")
        return
    kind, name, opened = OPENED[medium]
    message = {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "what is this"}]}
    chosen = {"temperature": 0, "max_tokens": 6}
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        params = DiffusionParams(extra={**chosen, "modalities": ("text",)})
        [seen] = omni.generate({"messages": [message], name: [opened(file)]}, params, seed=3, progress=False)
        [unseen] = omni.generate([[{"role": "user", "content": "what is this"}]], params, seed=3, progress=False)
    assert (code, out) == (0, f"{seen.text}\n")
    assert seen.written[0].tokens != unseen.written[0].tokens, "it is looked at"


@pytest.mark.parametrize("model", TAKES)
def test_a_video_is_heard_in_its_own_file_by_a_model_that_can(
    model: str,
    files: Path,
    once: Once,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build, takes = TAKES[model]
    folder, file = once.folder(model, build), tmp_path / "film.mp4"
    sound = Sound(samples_of(chord(16_000, 2, 1), 16_000, 1), 16_000)
    save_video(Video(film(24, 16, 4), 2.0), file, {}, sound=sound)
    code = chat(folder, monkeypatch, "--video", str(file), "--hear-videos")
    out, told = capsys.readouterr()
    if "video" not in takes:
        assert (code, out) == (2, "") and "--hear-videos is for one that does; leave it out" in told
        return
    silent = file_of(files, "video")
    for wrong, words in (
        (
            ("--video", str(file), "--video", str(silent), "--hear-videos"),
            f"--hear-videos: nothing is heard in {silent};",
        ),
        (("--hear-videos",), "--hear-videos is for videos that are shown; name them with --video FILE"),
        (("--voice", "ethan"), "--voice ethan is of an answer that is spoken; say with -o reply.wav where that goes"),
    ):
        assert (chat(folder, monkeypatch, *wrong), words in capsys.readouterr().err) == (2, True)
    message = {
        "role": "user",
        "content": [{"type": "video", "video": str(file)}, {"type": "text", "text": "what is this"}],
    }
    chosen = {"temperature": 0, "max_tokens": 6, "seed": 3}
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        heard, seen = omni.generate(
            [[message], [message]], [{**chosen, "use_audio_in_video": hears} for hears in (True, False)], progress=False
        )
    assert (code, out) == (0, f"{heard.text}\n")
    assert heard.prompt_tokens > seen.prompt_tokens, "it is heard, too"


@pytest.mark.parametrize("medium", sorted(ALL))
@pytest.mark.parametrize("given", ["nowhere", "note.txt", "empty", "", "another"])
def test_a_file_that_is_none_of_its_kind_is_refused_before_the_model_is_loaded(
    medium: str,
    given: str,
    files: Path,
    once: Once,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = once.folder("qwen3_omni", qwen3_omni.build)
    other = {"picture": "sound", "sound": "picture", "video": "picture"}[medium]  # a video may have a sound
    file = file_of(files, other) if given == "another" else files / given
    assert chat(folder, monkeypatch, f"--{medium}", str(file)) == 2
    told = capsys.readouterr().err
    assert str(file) in told and told.count(str(file)) == 1
    if given in ("nowhere", ""):
        assert told == f"omnimuse: there is no {medium} {file}; give the name of a file that exists\n"
    else:
        known = {"picture": "PNG", "sound": "FLAC", "video": "MP4"}[medium]
        assert "; use " in told and (known in told)


@pytest.mark.parametrize(
    ("model", "says"),
    [("qwen3_omni", "[the prompt has "), ("qwen25_omni", "[the sound lasts 200 s; at most 8 s can be heard")],
)
def test_a_sound_that_is_too_long_to_be_read_is_told_and_the_talk_goes_on(
    model: str, says: str, files: Path, once: Once, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = once.folder(model, TAKES[model][0])
    assert chat(folder, monkeypatch, "--sound", str(files / "long.wav")) == 1
    out, told = capsys.readouterr()
    assert out.startswith(says) and out.count("\n") == 1
    assert told == ""


@pytest.mark.parametrize(
    ("model", "medium", "most"),
    [("qwen3_omni", "picture", 8), ("qwen25_omni", "sound", 4), ("qwen3_omni", "video", 2), ("bagel", "picture", 8)],
)
def test_more_than_a_model_takes_is_refused_with_how_many_it_takes(
    model: str,
    medium: str,
    most: int,
    files: Path,
    once: Once,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = [f"--{medium}", str(file_of(files, medium))] * (most + 1)
    assert chat(once.folder(model, TAKES[model][0]), monkeypatch, *shown) == 2
    assert f"{most + 1} {medium}s were given; {model} takes at most {most}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("build", "command"), [(glm_image.build, "generate"), (SPEAKS["base"], "speak")], ids=["draws", "speaks"]
)
def test_a_model_that_does_not_write_names_the_command_that_it_is_for(
    build: Callable[[Path], Path],
    command: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = build(tmp_path / "tiny")
    assert chat(folder, monkeypatch, "--picture", str(file_of(files, "picture"))) == 2
    assert f"does not write; use `omnimuse {command}` with it" in capsys.readouterr().err


def test_a_text_is_said_with_the_voice_of_a_sound(files: Path, tmp_path: Path, once: Once) -> None:
    folder, made = once.folder("base", SPEAKS["base"]), tmp_path / "hello.wav"
    assert speak(folder, "--like", str(files / "sound.wav"), "-o", str(made)) == 0
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        prompt = {"prompt": "a star", "sounds": [open_sound(files / "sound.wav")]}
        [expected] = omni.generate(prompt, max_tokens=6, seed=3, progress=False)
        expected.audios[0].save(tmp_path / "again.wav")
    rate = expected.audios[0].rate
    assert (samples_of(open_sound(made), rate, 1) == samples_of(open_sound(tmp_path / "again.wav"), rate, 1)).all()


def test_a_sound_goes_on_as_it_is_said_where_its_text_comes_too(files: Path, tmp_path: Path, once: Once) -> None:
    folder, said = once.folder("base", SPEAKS["base"]), ("--like-text", "one two three")
    made, alone = tmp_path / "on.wav", tmp_path / "alone.wav"
    assert speak(folder, "--like", str(files / "sound.wav"), *said, "-o", str(made)) == 0
    assert speak(folder, "--like", str(files / "sound.wav"), "-o", str(alone)) == 0
    assert read_settings(made)["extra"]["ref_text"] == "one two three"
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        prompt = {"prompt": "a star", "sounds": [open_sound(files / "sound.wav")]}
        [expected] = omni.generate(prompt, ref_text="one two three", max_tokens=6, seed=3, progress=False)
        expected.audios[0].save(tmp_path / "again.wav")
    found, again, other = (samples_of(open_sound(path), 2400, 1) for path in (made, tmp_path / "again.wav", alone))
    assert found.shape == again.shape and (found == again).all()
    assert found.shape != other.shape or (found != other).any()


@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("base", ("--like-text", "a star"), "give one (--like)"),
        ("base", ("--like", "sound.wav", "--like-text", " "), "is empty; write what is said in the sound"),
        ("base", ("--like", "sound.wav", "--like-text", "a" * 4001), "4001 characters; at most 4000 are allowed"),
        ("custom_voice", ("--like-text", "a star"), "takes no voice from a sound; leave it out"),
    ],
    ids=["no sound", "empty", "long", "own voices"],
)
def test_what_is_said_in_a_sound_is_refused_where_it_cannot_be_read(
    kind: str, words: tuple[str, ...], says: str, files: Path, once: Once, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(files / word) if word.endswith(".wav") else word for word in words]
    assert speak(once.folder(kind, SPEAKS[kind]), *given) == 2
    told = capsys.readouterr().err
    assert says in told and "ref_text" not in told


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        ("base", "", "speaks with that of a sound; give one (--like)"),
        ("base", "nowhere.wav", "there is no sound "),
        ("base", "note.txt", "; use a file of one of WAV"),
        ("base", "picture.png", "; use a file of one of WAV"),
        ("base", "brief.wav", "lasts 0.2 s; whose voice it is can be heard in at least 0.5 s"),
        ("custom_voice", "sound.wav", "; leave out --like"),
    ],
)
def test_a_voice_that_cannot_be_taken_is_refused_and_nothing_is_written(
    kind: str, given: str, says: str, files: Path, tmp_path: Path, once: Once, capsys: pytest.CaptureFixture[str]
) -> None:
    like = ("--like", str(files / given)) if given else ()
    assert speak(once.folder(kind, SPEAKS[kind]), *like, "-o", str(tmp_path / "hello.wav")) == 2
    out, told = capsys.readouterr()
    assert says in told
    assert out == "" and not list(tmp_path.iterdir())
