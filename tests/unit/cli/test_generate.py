"""`omnimuse generate` with a fake engine: what is checked first, what is shown, what is left on the disk."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimuse.cli.app import Parser
from omnimuse.cli.generate import add_options, draw
from omnimuse.cli.job import Job, plan, read_size
from omnimuse.core.config import Config
from omnimuse.core.errors import CapacityError, ConfigError, RequestError
from omnimuse.core.output import Event, Preview
from omnimuse.media.image import read_settings
from tests.fake_omni import SIDE, FakeOmni


def job(words: Sequence[str], stdin: str = "") -> Job:
    """The job that `omnimuse generate` would make of `words`."""
    parser = Parser(prog="omnimuse generate", allow_abbrev=False)
    add_options(parser)
    return plan(parser.read(words), io.StringIO(stdin))


@dataclass
class Drawn:
    """The exit code of a job, what it printed, and the engine it used."""

    code: int
    out: str
    err: str
    omni: FakeOmni


def drawn(wanted: Job, **fake: Any) -> Drawn:
    """`wanted` drawn by a fake engine."""
    out, err = io.StringIO(), io.StringIO()
    engines: list[FakeOmni] = []

    def start(config: Config) -> FakeOmni:
        engines.append(FakeOmni(config, **fake))
        return engines[0]

    code = draw(wanted, lambda config: start, stdout=out, stderr=err)
    return Drawn(code, out.getvalue(), err.getvalue(), engines[0])


# -- reading and checking the options ------------------------------------------------------------------------------


def test_prompts_come_from_arguments_stdin_and_a_file_in_that_order(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\na blue square\n\n  a pink ring \n")
    wanted = job(["one", "-", "--file", str(tmp_path / "more.txt"), "three"], stdin="two\n\n")
    assert [p["prompt"] for p in wanted.prompts] == ["one", "two", "three", "a blue square", "a pink ring"]


def test_options_become_parameters_and_configuration() -> None:
    wanted = job(shlex.split("a -n 2 --seed 7 --steps 8 --guidance 1.5 --size 96x64 --load dummy --dtype float32"))
    p = wanted.params
    assert (p.num_outputs_per_prompt, p.seed, p.num_inference_steps, p.guidance_scale) == (2, 7, 8, 1.5)
    assert (p.width, p.height) == (96, 64)
    assert (wanted.config.model.load, wanted.config.model.dtype) == ("dummy", "float32")


def test_a_negative_prompt_goes_with_every_prompt() -> None:
    assert job(["a", "b", "--negative", "blue"]).prompts == [
        {"prompt": "a", "negative_prompt": "blue"},
        {"prompt": "b", "negative_prompt": "blue"},
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no prompt"),
        (["  "], "a prompt is empty"),
        (["-"], "there is no prompt"),
        (["a", "--file", "/nowhere/x.txt"], "cannot read prompts from /nowhere/x.txt: .*No such file"),
        (["a", "--size", "big"], "--size big is not WIDTHxHEIGHT in pixels; write it like 128x128"),
        (["a", "-n", "0"], "-n 0 makes no picture; use at least 1"),
        (["a", "--steps", "many"], r"argument --steps: invalid int value: 'many'. `omnimuse generate --help`"),
        (["a", "--sed", "7"], r"unknown option --sed\. Did you mean --seed\?"),
        (["a", "-o", "a.gif"], r"'\.gif'; use one of \.jpeg, \.jpg, \.mp4, \.png, \.webp"),
        (["a", "-o", "/proc/x/a.png"], "cannot write /proc/x/a.png"),
    ],
)
def test_wrong_input_is_refused_with_what_to_do(words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        job(words)


@pytest.mark.parametrize("words", [["a", "--load", "maybe"], ["a", "--dtype", "float8"]])
def test_a_choice_that_does_not_exist_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="is not allowed; use one of"):
        job(words)


def test_a_size_is_read_as_width_and_height() -> None:
    assert read_size(" 640X480") == (640, 480)
    assert read_size(None) == (None, None)


# -- drawing -------------------------------------------------------------------------------------------------------


def test_one_picture_is_saved_with_its_settings_and_the_page_says_what_to_try_next(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo.png"
    done = drawn(job(["a red circle", "--negative", "blue", "--seed", "7", "-o", str(path)]))
    assert done.code == 0
    assert done.omni.closed
    with Image.open(path) as image:
        assert image.size == (SIDE, SIDE)
    settings = read_settings(path)
    assert settings["prompt"] == "a red circle"
    assert settings["negative_prompt"] == "blue"
    assert (settings["seed"], settings["num_inference_steps"], settings["width"]) == (7, 4, SIDE)
    first, timing, *rest = done.out.splitlines()
    assert first == f"{path}  8x8, seed 7"
    assert "encode 0.020 s, denoise 1.2 s" in timing
    assert "queue" not in timing
    assert rest[0] == "try next:"
    assert any(line.startswith('  omnimuse generate "a red circle" --negative "blue" --seed 7') for line in rest)


def test_several_pictures_are_numbered_and_carry_their_own_seeds(tmp_path: Path) -> None:
    done = drawn(job(["one", "two", "-n", "2", "--seed", "5", "-o", str(tmp_path / "a.webp")]))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a-1.webp", "a-2.webp", "a-3.webp", "a-4.webp"]
    assert [read_settings(tmp_path / name)["seed"] for name in names] == [5, 6, 5, 6]
    assert [read_settings(tmp_path / name)["prompt"] for name in names] == ["one", "one", "two", "two"]
    assert 'a-3.webp  8x8, seed 5  "two"' in done.out


def test_json_is_one_object_with_files_seeds_settings_and_timings(tmp_path: Path) -> None:
    done = drawn(job(["a", "--json", "-n", "2", "-o", str(tmp_path / "a.png")]))
    record = json.loads(done.out)
    assert record["model"] == "omnimuse/shapes"
    assert set(record["seconds"]) == {"import", "load", "draw", "total"}
    [row] = record["results"]
    assert row["files"] == [str(tmp_path / "a-1.png"), str(tmp_path / "a-2.png")]
    assert row["seeds"] == [100, 101]
    assert row["settings"]["num_inference_steps"] == 4
    assert row["timings"]["denoise"] == 1.25
    assert row["error"] is None


def test_quiet_prints_the_names_of_the_files_and_nothing_else(tmp_path: Path) -> None:
    done = drawn(job(["a", "--quiet", "-o", str(tmp_path / "a.png")]))
    assert done.out == f"{tmp_path / 'a.png'}\n"
    assert done.err == ""


def test_a_failing_prompt_is_reported_and_the_others_are_saved(tmp_path: Path) -> None:
    wanted = job(["good", "bad", "-o", str(tmp_path / "a.png")])
    done = drawn(wanted, failures={"bad": CapacityError("no room; wait")})
    assert done.code == 1
    assert done.err.splitlines()[-1] == 'omnimuse: "bad": no room; wait'
    assert [p.name for p in tmp_path.iterdir()] == ["a-1.png"]


def test_a_failing_prompt_is_an_error_in_the_json(tmp_path: Path) -> None:
    wanted = job(["bad", "--json", "-o", str(tmp_path / "a.png")])
    done = drawn(wanted, failures={"bad": RequestError("wrong", "seed")})
    assert done.code == 2
    assert json.loads(done.out)["results"][0]["error"] == {"kind": "RequestError", "message": "wrong", "param": "seed"}
    assert list(tmp_path.iterdir()) == []


def test_one_reason_for_all_prompts_is_said_once(tmp_path: Path) -> None:
    error = RequestError("wrong", "seed")
    done = drawn(job(["a", "b", "-o", str(tmp_path / "a.png")]), failures={"a": error, "b": error})
    assert done.err.splitlines()[-1] == "omnimuse: wrong"
    assert done.out == ""


def test_the_preview_lives_beside_the_output_while_it_is_drawn_and_goes_at_the_end(tmp_path: Path) -> None:
    preview, seen = tmp_path / "a.preview.png", []

    def watch(event: Event) -> None:
        if isinstance(event, Preview) and event.output == 0:
            seen.append((event.step, read_settings(preview)["preview of step"]))

    drawn(job(["a", "-n", "2", "--preview", "-o", str(tmp_path / "a.png")]), watch=watch)
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert not preview.exists()


def test_an_interrupted_job_closes_the_engine_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        drawn(job(["a", "--preview", "-o", str(tmp_path / "a.png")]), interrupt=KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
