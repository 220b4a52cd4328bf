"""The real command over a tiny random checkpoint: from prompt to file, and refusals before torch is imported."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from omnimuse.cli import main
from omnimuse.media.image import read_settings, save_image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(z_image_folder: Path) -> str:
    """The tiny checkpoint as a person names it."""
    return str(z_image_folder)


def test_a_picture_can_be_made_again_from_the_settings_it_carries(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    words = ["generate", "a red circle", "-m", model, "--size", "64x32", "--steps", "2", "--dtype", "float32"]
    assert main([*words, "--negative", "blue", "-o", str(first), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    settings = read_settings(first)
    assert record["results"][0]["settings"].items() <= settings.items()
    assert (settings["width"], settings["height"]) == (64, 32)
    assert main([*words, "--negative", "blue", "-o", str(again), "--seed", str(settings["seed"])]) == 0
    with Image.open(first) as a, Image.open(again) as b:
        assert a.size == (64, 32)
        assert ImageChops.difference(a, b).getbbox() is None
    assert "denoise" in capsys.readouterr().out


SEED = ["--seed", "7"]
NEAR = ["--size", "32x48", "--steps", "2"]


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize(
    "words",
    [
        ["a red circle", *SEED],
        ["a red circle", "-n", "2", "--exact"],
        ['it\'s "red" & $HOME `x` \\ *', "--negative", "it's blue; no!", *SEED],
        ["--prompt=-5 degrees", *SEED],
        ["eine grüne Straße, 東京\nin two lines " * 8, "--negative", "grau"],
        ["a", "--guidance", "1.5", "--set", "cfg_normalization=0.9", "--set", "cfg_truncation=0.6"],
        ["a", "--cfg-scale", "2", "--num-inference-steps", "3", "--height", "64"],
        ["a", "--dtype", "bfloat16", "--attention", "reference", "--teacache", "0.4", "--steps", "6"],
        ["a", "--flow-shift", "2.5", "--sample-solver", "unipc"],
        ["a", "--max-sequence-length", "24", "-o", "of two words.webp"],
        ["a", "--image", "of two words.png", "--strength", "0.5", "-o", "new/b.jpg"],
        ["a story of a picture " * 10, "--image", "of two words.png"],
        ["a", "--load", "dummy", "--exact"],
    ],
)
def test_the_line_that_promises_the_same_picture_again_makes_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with chdir(tmp_path):
        Image.effect_noise((48, 32), 90).convert("RGB").save("of two words.png")
        chosen = [] if "--height" in words else NEAR
        base = ["--steps", "2", "--width", "32"] if "--height" in words else []
        assert main(["generate", "-m", model, *base, *chosen, *words]) == 0
        printed = capsys.readouterr().out
        first = printed.splitlines()[0].split("  ")[0]
        [line] = [line for line in printed.splitlines() if line.endswith("# the same picture again")]
        assert main(shlex.split(line, comments=True)[1:]) == 0
        second = capsys.readouterr().out.splitlines()[0].split("  ")[0]
        assert first != second
        with Image.open(first) as a, Image.open(second) as b:
            assert ImageChops.difference(a, b).getbbox() is None
        assert main(["generate", "--from", first, *images(words), "-o", "third/" + Path(first).name]) == 0
        with Image.open(first) as a, Image.open("third/" + Path(first).name) as b:
            assert ImageChops.difference(a, b).getbbox() is None
        assert read_settings(Path(first)) == read_settings(Path("third") / Path(first).name)


def images(words: list[str]) -> list[str]:
    return ["--image", words[words.index("--image") + 1]] if "--image" in words else []


def test_a_choice_beside_from_changes_that_and_nothing_else(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chdir(tmp_path):
        assert main(["generate", "a star", "-m", model, *NEAR, "--dtype", "float32", "-o", "a.png"]) == 0
        assert main(["generate", "a ring", "--from", "a.png", "--height", "32", "-o", "b.png"]) == 0
        before, after = read_settings(Path("a.png")), read_settings(Path("b.png"))
    assert {**before, "prompt": "a ring", "height": 32} == after


def test_a_picture_with_bundled_adapters_is_drawn_again_with_them_or_by_choice_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night = ["--lora", "omnimuse/shapes/night:0.5"]
    with chdir(tmp_path):
        assert main(["generate", "a red circle", "--steps", "3", *SEED, *night, "-o", "a.png"]) == 0
        assert main(["generate", "a red circle", "--steps", "3", *SEED, "-o", "without.png"]) == 0
        assert main(["generate", "--from", "a.png", "-o", "b.png"]) == 0
        assert main(["generate", "--from", "a.png", "--lora", "none", "-o", "c.png"]) == 0
        assert read_settings(Path("b.png")) == read_settings(Path("a.png"))
        assert "loras" not in read_settings(Path("c.png"))
        drawn = {name: Image.open(f"{name}.png").tobytes() for name in ("a", "b", "c", "without")}
    assert drawn["a"] == drawn["b"] != drawn["c"] == drawn["without"]


def test_what_the_environment_chose_is_in_the_file_which_then_counts_before_it(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with chdir(tmp_path):
        monkeypatch.setenv("OMNIMUSE_ATTENTION", "reference")
        assert main(["generate", "a star", "-m", model, *NEAR, "--dtype", "float32", "-o", "a.png"]) == 0
        assert "--attention reference" in capsys.readouterr().out  # in the line that promises the same picture again
        monkeypatch.setenv("OMNIMUSE_ATTENTION", "sdpa")
        assert main(["generate", "--from", "a.png", "-o", "b.png"]) == 0
        assert main(["generate", "--from", "a.png", "--attention", "auto", "-o", "c.png"]) == 0
        engines = [read_settings(Path(name)).get("engine") for name in ("a.png", "b.png", "c.png")]
    assert engines == [{"attention": "reference"}, {"attention": "reference"}, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "x", "engine": {"output": "/tmp/x.png"}}, "have the option 'output', which chooses no engine"),
        ({"prompt": "x", "engine": {"plugin": "antigravity"}}, "have the option 'plugin', which chooses no engine"),
        (
            {"prompt": "x", "engine": {"component": "text_encoder=/etc/x.gguf"}},
            "have the option 'component', which chooses no engine",
        ),
        ({"prompt": "x", "engine": {"writer-python": "/bin/sh"}}, "option 'writer-python', which chooses no engine"),
        ({"prompt": "x", "engine": "fast"}, "have engine='fast', which is no set of names and values"),
        ({"prompt": "x", "num_inference_steps": "--output=x"}, "argument --steps: invalid int value"),
        ({"prompt": 7}, "have no prompt; write one"),
        (
            {"prompt": "x", "loras": [{"name": "night", "scale": 0.5}, {"name": "ink", "scale": 1.0}]},
            "was drawn with adapters ('night' at 0.5, 'ink' at 1.0), which are not in it; give them with --lora",
        ),
        (
            {"prompt": "x", "model": "omnimuse/shapes", "loras": [{"name": "night.safetensors", "scale": 0.5}]},
            "give them with --lora (--lora omnimuse/shapes/night:0.5), or draw without by --lora none",
        ),
        (
            {"prompt": "x", "model": "omnimuse/shapes", "loras": [{"name": "/etc/x", "scale": 0.5}]},
            "give them with --lora, or draw without by --lora none",
        ),
        ({"prompt": "x", "loras": [{"name": "omnimuse/shapes/../x"}]}, "('omnimuse/shapes/../x' at None)"),
        ({"prompt": "x", "loras": [{"name": "omnimuse/shapes/x"}]}, "the adapter omnimuse/shapes/x is not bundled"),
        (
            {"prompt": "x", "files": {"transformer": "z.gguf"}},
            "was drawn with weights of other files (transformer=z.gguf), which are not in it",
        ),
        ({"prompt": "x", "files": "z.gguf"}, "was drawn with weights of other files, which are not in it"),
        ({"prompt": "x", "loras": ["night"]}, "was drawn with adapters, which are not in it; give them with --lora"),
        ({"prompt": "x", "images": ["0123"]}, "was drawn from a picture, which is not in it; give it with --image"),
        ({"prompt": "x", "extra": {"output_type": "latent"}}, "--set output_type cannot be chosen here"),
    ],
)
def test_settings_in_a_stranger_s_file_choose_nothing_but_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], message: str
) -> None:
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png", settings)
    with chdir(tmp_path):
        assert main(["generate", "--from", "a.png"]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.costly
def test_a_terminal_that_cannot_show_all_of_unicode_ends_nothing(model: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "omnimuse", "generate", "a \u25cb", "東京", "-m", model, *NEAR]
    text = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert text.returncode == 0, text.stderr
    assert rb"\u6771\u4eac" in text.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_is_printed_is_escaped_where_the_encoding_lacks_it(model: str, tmp_path: Path, encoding: str) -> None:
    def printed(*more: str) -> bytes:
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        with chdir(tmp_path), redirect_stdout(out):
            assert main(["generate", "a \u25cb", "東京", "-m", model, *NEAR, *more]) == 0
        out.flush()
        return out.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert ("東京".encode() if encoding == "utf-8" else rb"\u6771\u4eac") in printed()
    told = json.loads(printed("--json").decode(encoding))
    assert [row["prompt"] for row in told["results"]] == ["a \u25cb", "東京"]


@pytest.mark.costly
def test_an_interrupt_from_the_keyboard_keeps_pictures_and_the_line_it_prints_makes_the_rest(
    model: str, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"number {number}\n" for number in range(24)))
    line = ["generate", "--file", "prompts.txt", "-m", model, "--size", "32x32", "--steps", "16", "-o", "many/"]
    command = [sys.executable, "-m", "omnimuse", *line, "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    many = tmp_path / "many"
    while process.poll() is None and not (many.is_dir() and list(many.glob("picture-*.png"))):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    done = sorted(many.iterdir())
    assert out.splitlines() == [f'many/{path.name}  32x32, seed 1  "{read_settings(path)["prompt"]}"' for path in done]
    again = shlex.split(err.splitlines()[-1])
    assert again == ["omnimuse", *line, "--seed", "1", "--resume"]
    rest = subprocess.run(
        [sys.executable, "-m", *again], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout.startswith(f"{len(done)} of 24 are there already")
    assert [read_settings(path)["prompt"] for path in sorted(many.iterdir())] == prompts.read_text().splitlines()


def test_a_prompt_that_is_too_long_is_told_to_people_and_to_programs(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", model, *NEAR, "--max-sequence-length", "24", "--negative", "grey"]
    with chdir(tmp_path):
        assert main(["generate", "a long story " * 20, "a star", *words]) == 0
        err = capsys.readouterr().err
        assert 'omnimuse: "a long story a long story' in err
        assert "and text_encoder reads 24 of them (max_sequence_length=24), not the last" in err
        assert main(["generate", "a long story " * 20, "a star", *words, "--json"]) == 0
        long, short = json.loads(capsys.readouterr().out)["results"]
    assert [text["left_out"] > 0 for text in long["texts"]] == [True, False]
    assert long["warnings"][0].startswith("the prompt has ")
    assert short["warnings"] == []


def test_explain_tells_the_choices_for_a_folder(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", model, "--json"]) == 0
    topics = {choice["topic"] for choice in json.loads(capsys.readouterr().out)}
    assert {"model", "place", "attention"} <= topics


REFUSED: list[tuple[list[str], str]] = [
    (["--size", "65x64"], "width=65 is not a multiple of 16; use 64 or 80"),
    (["--steps", "0"], "num_inference_steps=0 is out of range"),
    (["--guidance", "nan"], "guidance_scale=nan is not a number"),
    (["--seed", "-1"], "seed=-1 is out of range"),
    (["--set", "over=1"], "extra has no field 'over' for this model"),
    (["--set", "steps=1"], "did you mean 'num_inference_steps'?"),
    (["--prompt", "caf\udce9"], "half"),
    (["--defaults-of", "FLUX.1-dev"], "--defaults-of FLUX.1-dev is no checkpoint of the family of"),
]


def test_what_the_model_would_refuse_is_refused_before_torch_is_imported(model: str) -> None:
    """In one process, because each takes time to start: torch must not have been imported by any of them."""
    lines = [["generate", "a", "-m", model, *words] for words, _ in REFUSED]
    program = (
        "import contextlib, io, json, sys\nfrom omnimuse.cli import main\ntold = []\n"
        f"for line in {lines!r}:\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        code = main(line)\n"
        "    told.append((100 if 'torch' in sys.modules else code, said.getvalue()))\n"
        "print(json.dumps(told))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for (words, message), (code, said) in zip(REFUSED, json.loads(done.stdout), strict=True):
        assert code == 2, (words, said)
        assert message in said
        assert said.count("\n") == 1
