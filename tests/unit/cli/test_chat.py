"""`omnimuse chat`: a talk with a tiny model, in a terminal that is a string."""

from __future__ import annotations

import gzip
import io
import json
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from omnimuse import DiffusionParams, GenerationParams, Omni
from omnimuse.cli.app import main
from omnimuse.cli.blocks import in_blocks
from omnimuse.cli.chat import Setting, talk
from omnimuse.cli.plot import GAP
from omnimuse.core.params import AnswerParams
from omnimuse.media.destination import write_whole
from omnimuse.media.picture import open_picture
from tests.checkpoints import calling, qwen3, qwen3_omni, qwen25_omni, talk_and_draw
from tests.checkpoints.adapters import layers_telling, peft, write
from tests.checkpoints.wishes import photo

PARAMS = GenerationParams(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3.build(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def said(omni: Omni, *turns: tuple[str, str]) -> str:
    [result] = omni.generate([[{"role": role, "content": content} for role, content in turns]], PARAMS, progress=False)
    assert result.error is None
    return result.text


def test_every_answer_knows_what_was_said_until_the_talk_begins_anew(omni: Omni) -> None:
    out = io.StringIO()
    assert talk(omni, PARAMS, io.StringIO("a red circle\n\na star\n/new\na star\n/exit\nnever read\n"), out) == 0
    first = said(omni, ("user", "a red circle"))
    second = said(omni, ("user", "a red circle"), ("assistant", first), ("user", "a star"))
    alone = said(omni, ("user", "a star"))
    assert out.getvalue() == f"{first}\n{second}\n{alone}\n"
    assert second != alone


def test_an_adapter_is_worn_for_the_length_of_a_talk(
    folder: Path, omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = f"{write(tmp_path / 'ink.safetensors', layers_telling(folder), peft('base_model.model.'))}:0.8"
    command = ["chat", str(folder), "--dtype", "float32", "--device", "cpu", "--temperature", "0", "--max-tokens", "6"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a red circle\n"))
    assert main([*command, "--lora", adapter]) == 0
    talked = [[{"role": "user", "content": "a red circle"}]]
    [expected] = omni.generate(talked, PARAMS, loras=[adapter], progress=False)
    assert capsys.readouterr().out == f"{expected.text}\n"
    assert expected.text != said(omni, ("user", "a red circle"))
    assert main([*command, "--lora", "absent.safetensors"]) == 2
    assert "absent.safetensors is no file or folder" in capsys.readouterr().err


def test_an_interrupt_ends_the_answer_and_not_the_talk(omni: Omni) -> None:
    class Impatient(io.StringIO):
        """Somebody who presses Ctrl-C at the first word of the first answer."""

        pressed = False

        def flush(self) -> None:
            if self.getvalue() and not self.pressed:
                self.pressed = True
                raise KeyboardInterrupt

    out = Impatient()
    assert talk(omni, PARAMS, io.StringIO("a red circle\na star\n"), out) == 0
    first, second = out.getvalue().splitlines()[0], out.getvalue().split(" [stopped]\n")[1]
    begun = out.getvalue().split(" [stopped]\n")[0]
    assert begun and first
    assert second == said(omni, ("user", "a red circle"), ("assistant", begun), ("user", "a star")) + "\n"
    assert omni.engine.idle or not omni.engine.runner.jobs


def test_a_line_that_is_refused_is_told_and_the_talk_goes_on_without_it(omni: Omni) -> None:
    out = io.StringIO()
    lines = io.StringIO(f"a red circle\n{'a star ' * 5000}\na star\n")
    assert talk(omni, PARAMS, lines, out) == 1
    first = said(omni, ("user", "a red circle"))
    second = said(omni, ("user", "a red circle"), ("assistant", first), ("user", "a star"))
    told = out.getvalue().removeprefix(f"{first}\n[").removesuffix(f"]\n{second}\n")
    assert "tokens" in told and "\n" not in told


def test_a_model_that_draws_is_refused_before_it_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "omnimuse/shapes"]) == 2
    assert "does not write; use `omnimuse generate`" in capsys.readouterr().err


def test_a_text_goes_on_on_stdout_in_a_file_and_in_json(
    folder: Path, omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [expected] = omni.generate("a red circle", temperature=0, max_tokens=4, progress=False)
    command = ["generate", "a red circle", "-m", str(folder), "--dtype", "float32", "--device", "cpu"]
    command += ["--set", "temperature=0", "--set", "max_tokens=4"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{expected.text}\n"
    assert main([*command, "-n", "2", "-o", "answer.txt"]) == 0
    assert capsys.readouterr().out.splitlines() == ["answer-001.txt", "answer-002.txt"]
    assert (tmp_path / "answer-002.txt").read_text() == f"{expected.text}\n"
    assert main([*command, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["results"]
    assert (row["text"], row["tokens"], row["reason"], row["error"]) == (expected.text, 4, "length", None)


def test_a_plot_and_a_recording_show_where_the_time_of_a_text_went_beside_the_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, trace = tmp_path / "time.png", tmp_path / "trace.json.gz"
    command = ["generate", "a red circle", "-m", str(folder), "--dtype", "float32", "--device", "cpu"]
    command += ["--set", "temperature=0", "--set", "max_tokens=4"]
    assert main(command) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    assert main([*command, "--plot", str(place)]) == 0
    told = capsys.readouterr()
    assert told.out == plain.out
    assert re.search(r"^time: imports .*, generate \d", told.err, re.MULTILINE)
    assert re.search(r"^model\.layers\.0 +4 .* [\d.]+ [KMG]iB$", told.err, re.MULTILINE)
    with Image.open(place) as bars:
        assert bars.height > 2 * 2 * GAP, "two bars, and blocks below them"
    assert main([*command, "--json", "--profile", str(trace)]) == 0
    [row] = json.loads(capsys.readouterr().out)["results"]
    assert len(row["steps"]["generate"]) == len(row["bytes"]["generate"]) == 4
    assert {len(runs) for name, runs in row["blocks"].items() if name.startswith("model.layers.")} == {4}
    assert row["block_bytes"].keys() == row["blocks"].keys()
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"step 1", "model.layers.0", "aten::linear"} <= names


def test_a_talk_is_told_as_json_and_its_time_as_a_plot_and_a_recording(
    folder: Path, omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, trace = tmp_path / "time.png", tmp_path / "trace.json.gz"
    command = ["chat", str(folder), "--dtype", "float32", "--device", "cpu", "--temperature", "0", "--max-tokens", "6"]
    lines = f"a red circle\n{'a star ' * 5000}\na star\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main([*command, "--json", "--profile", str(trace)]) == 1
    told = json.loads(capsys.readouterr().out)
    first, refused, second = told["results"]
    assert first["text"] == said(omni, ("user", "a red circle"))
    assert second["text"] == said(omni, ("user", "a red circle"), ("assistant", first["text"]), ("user", "a star"))
    assert [row["prompt"] for row in (first, second)] == ["a red circle", "a star"] and first["tokens"] == 6
    assert refused["error"]["kind"] == "RequestError" and not refused["text"]
    assert {len(runs) for name, runs in first["blocks"].items() if name.startswith("model.layers.")} == {6}
    assert told["seconds"]["draw"] > 0 < told["seconds"]["wait"]
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"step 1", "model.layers.0", "aten::linear"} <= names

    monkeypatch.setattr("sys.stdin", io.StringIO("a red circle\na star\n"))
    assert main([*command, "--plot", str(place)]) == 0
    plotted = capsys.readouterr()
    assert plotted.out == f"{first['text']}\n{second['text']}\n"
    assert re.search(r"^time: imports .*, talking \d", plotted.err, re.MULTILINE)
    assert re.search(r"^model\.layers\.0 +6 .* [\d.]+ [KMG]iB$", plotted.err, re.MULTILINE)
    with Image.open(place) as bars:
        assert bars.height > 3 * 2 * GAP, "three bars, and blocks below them"
    assert main([*command, "--plot", str(place)]) == 2
    assert f"--plot {place} is there already; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "plot"),
    [
        (("-o", "answer.txt", "--overwrite"), "answer.png"),
        (("-o", "answer.txt"), "answer.png"),
        (("-o", "answer.txt", "-n", "2"), "answer-002.png"),
        ((), "picture.png"),
    ],
)
def test_a_plot_goes_where_no_picture_of_a_text_does(
    options: tuple[str, ...],
    plot: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", "draw me a red star", "-m", "omnimuse/shapes-chat", *options]
    assert main([*command, "--plot", plot]) == 2
    assert f"--plot {plot} is where a picture itself goes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "name"), [("--plot", "time.png"), ("--profile", "trace.json.gz")])
def test_a_plot_or_a_recording_of_a_text_that_cannot_be_written_hides_nothing_of_the_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    kept = tmp_path / "answer.txt"
    command = ["generate", "a red circle", "-m", str(folder), "--dtype", "float32", "--device", "cpu"]
    assert main([*command, "--set", "max_tokens=4", "-o", str(kept), option, str(kept / name)]) == 1
    told = capsys.readouterr()
    assert told.out == f"{kept}\n" and kept.read_text().strip()
    assert str(kept) in told.err.splitlines()[-1]


def test_what_was_written_before_a_disk_was_full_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, content: bytes, *, replace: bool) -> None:
        if file.name == "answer-002.txt":
            raise OSError(28, "No space left on device")
        write_whole(file, content, replace=replace)

    monkeypatch.setattr("omnimuse.cli.writing.write_whole", full)
    command = ["generate", "a red circle", "-m", str(folder), "--dtype", "float32", "--device", "cpu", "-n", "3"]
    command += ["--set", "temperature=0", "--set", "max_tokens=4"]
    assert main([*command, "-o", str(tmp_path / "answer.txt"), "--json"]) == 1
    told = capsys.readouterr()
    assert [row["files"] for row in json.loads(told.out)["results"]] == [[str(tmp_path / "answer-001.txt")]]
    assert told.err == "omnimuse: No space left on device; free some space, or choose another place\n"


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (["-o", "answer.png"], "a text goes into a file that ends with .txt"),
        (["--preview"], "--preview is for models that draw"),
        (["--steps", "4"], "a text has as many steps as tokens"),
    ],
)
def test_what_no_text_can_be_asked_for_is_refused_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], choice: list[str], says: str
) -> None:
    assert main(["generate", "a red circle", "-m", str(folder), *choice]) == 2
    assert says in capsys.readouterr().err


def test_a_picture_that_comes_with_an_answer_is_kept_and_never_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = talk_and_draw.build(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    prompt, command = str(qwen3.PROMPTS[0]), ["--set", "temperature=0", "--set", "max_tokens=24", "--dtype", "float32"]
    assert main(["generate", prompt, "-m", str(folder), "--device", "cpu", "--seed", "7", *command]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "picture.png"
    with Omni(str(folder), dtype="float32", device="cpu") as engine:
        [result] = engine.generate(prompt, temperature=0, max_tokens=24, seed=7, progress=False)

        class Says:
            """An engine that answers everything alike, as the tiny model does not."""

            def stream(self, *given: object, **how: object) -> Iterator[tuple[int, object]]:
                yield 0, result

        out = io.StringIO()
        files = {"image": tmp_path / "picture.png"}
        assert talk(Says(), PARAMS, io.StringIO("draw\n"), out, Setting(files=files)) == 0  # type: ignore[arg-type]
    assert f"[{tmp_path / 'picture-001.png'}  48x32, seed 7]" in out.getvalue()
    kept = [Image.open(tmp_path / name).tobytes() for name in ("picture.png", "picture-001.png")]
    assert kept[0] == kept[1] == result.images[0].tobytes()


def test_a_terminal_shows_a_picture_in_blocks_of_two_pixels() -> None:
    picture = Image.new("RGB", (2, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 2, 2, 4))
    red, blue = "\x1b[38;2;255;0;0;48;2;255;0;0m\u2580", "\x1b[38;2;0;0;255;48;2;0;0;255m\u2580"
    assert in_blocks(picture) == f"{red * 2}\x1b[0m\n{blue * 2}\x1b[0m\n"


def test_one_prompt_and_one_talk_are_one_result_each(omni: Omni) -> None:
    [text] = omni.generate("a red circle", temperature=0, max_tokens=4, progress=False)
    [talked] = omni.generate([{"role": "user", "content": "a red circle"}], temperature=0, max_tokens=4, progress=False)
    assert text.text and talked.text
    assert text.written[0].tokens != talked.written[0].tokens, "a talk is written down by the template"


@pytest.mark.parametrize("model", [qwen3_omni, qwen25_omni], ids=["3", "2.5"])
def test_an_answer_to_what_is_shown_is_kept_as_a_sound(model: ModuleType, tmp_path: Path) -> None:
    folder = model.build(tmp_path / "tiny")
    photo(40, 24).save(tmp_path / "heron.png")
    shown = [{"type": "image", "image": open_picture(str(tmp_path / "heron.png"))}]
    reply = tmp_path / "reply.wav"
    params = DiffusionParams(extra=AnswerParams(temperature=0, max_tokens=8, modalities=("text", "audio")))
    with Omni(str(folder), dtype="float32", device="cpu") as engine:
        out = io.StringIO()
        setting = Setting(seed=3, shown=shown, files={"audio": reply})
        assert talk(engine, params, io.StringIO("what is this\nand now\n"), out, setting) == 0
        first = {"role": "user", "content": [*shown, {"type": "text", "text": "what is this"}]}
        [result] = engine.generate([[first]], params, seed=3, progress=False)
    lines = out.getvalue().splitlines()
    assert lines[0] == result.text
    assert lines[1].startswith(f"[{reply}")
    [sound] = [part.data for part in result.parts[0] if part.medium == "audio"]
    with wave.open(str(reply)) as file:
        assert file.getnframes() == sound.samples.shape[1]
    assert len(list(tmp_path.glob("reply*.wav"))) == 2, "the second answer has a file of its own"


@pytest.mark.parametrize("choice", [("-o", "reply.wav"), ("--voice", "ethan"), ("--picture", "heron.png")])
def test_what_a_model_of_texts_cannot_do_is_refused_before_it_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: tuple[str, str]
) -> None:
    photo(8, 8).save(tmp_path / "heron.png")
    name, value = choice
    assert main(["chat", str(folder), name, str(tmp_path / value) if "." in value else value]) == 2
    told = capsys.readouterr().err
    assert "works from text only" in told if name == "--picture" else "answers in text alone" in told


def test_a_call_of_a_tool_is_shown_and_the_talk_goes_on_with_what_came_of_it(tmp_path: Path) -> None:
    folder, out = calling.build(tmp_path / "tiny"), io.StringIO()
    with Omni(str(folder), dtype="float32", device="cpu") as engine:
        lines = io.StringIO("/answer 1\na heron?\n/answer a bird\n/answer 3\nand now?\n/answer\nwell?\n")
        assert talk(engine, GenerationParams(), lines, out, Setting(tools=[calling.LOOK])) == 0
        said = [{"role": "user", "content": "a heron?"}]
        [result] = engine.generate(said, tools=[calling.LOOK], progress=False)
        [ignored] = engine.generate(said, progress=False)
    asks = 'Let me see.\n[look_up {"word": "heron"}]\n[count {"upto": 3}]\n'
    assert out.getvalue() == f"[no call waits for an answer]\n{asks}A heron is a bird.\n{asks}{asks}"
    assert (result.text, [call.name for call in result.calls[0]]) == ("Let me see.", ["look_up", "count"])
    assert ignored.text == "".join(calling.ASKS) and ignored.calls == [()]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}", "holds no list of functions"),
        ("[", "cannot be read: it is no JSON at line 1, column 2"),
        ('["f"]', "this model calls no tools"),
    ],
)
def test_a_file_of_tools_that_is_none_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    (tmp_path / "tools.json").write_text(content)
    assert main(["chat", str(folder), "--tools", str(tmp_path / "tools.json")]) == 2
    assert says in capsys.readouterr().err


def test_a_file_of_tools_that_is_not_there_is_told_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(folder), "--tools", "nowhere.json"]) == 2
    assert "--tools nowhere.json cannot be read: No such file or directory\n" in capsys.readouterr().err
