"""`omnimuse generate` with a fake engine: what is checked first, what is shown, what is left on the disk."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import signal
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimuse.cli.again import engine_options, engine_settings, explained, same, words_of
from omnimuse.cli.app import Terminated, option_of, parser_of, stopped, terminable
from omnimuse.cli.engine import read_config
from omnimuse.cli.generate import draw, unbroken
from omnimuse.cli.job import Job, plan, read_size
from omnimuse.cli.outcome import keep_longest, spent_of
from omnimuse.cli.plot import GAP, bars_of, line_of, plot, spans
from omnimuse.core.config import Config
from omnimuse.core.errors import CapacityError, ConfigError, RequestError
from omnimuse.core.output import Event, Preview, Progress, Spent
from omnimuse.core.params import DiffusionParams
from omnimuse.deploy.process import told_of
from omnimuse.media.image import read_settings, save_image
from tests.fake_omni import SIDE, FakeOmni


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options in `words`, as the command line reads them."""
    return parser_of("generate").read(words)


def job(words: Sequence[str], stdin: str = "") -> Job:
    """The job that `omnimuse generate` would make of `words`."""
    return plan(parsed(words), io.StringIO(stdin))


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

    wanted = wanted.placed("image")
    code = draw(wanted, lambda config: start, stdout=out, stderr=err)
    return Drawn(code, out.getvalue(), err.getvalue(), engines[0] if engines else FakeOmni(wanted.config))


# -- reading and checking the options ------------------------------------------------------------------------------


def test_prompts_come_from_arguments_stdin_and_a_file_in_that_order(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("\na blue square\n\n  a pink ring \n")
    wanted = job(["one", "-", "--file", str(tmp_path / "more.txt"), "three"], stdin="two\n\n")
    assert [p["prompt"] for p in wanted.prompts] == ["one", "two", "three", "a blue square", "a pink ring"]


def test_comments_and_a_byte_order_mark_belong_to_no_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(
        "\ufeff# shapes\r\na ring\r\n\r\n  # grüne\r\n\\# as it is\r\nein Stern\u2028 am Himmel\r\n".encode()
    )
    assert [p["prompt"] for p in job(["--file", str(file)]).prompts] == [
        "a ring",
        "# as it is",
        "ein Stern\u2028 am Himmel",
    ]
    assert [p["prompt"] for p in job(["-", "# said"], stdin="\ufeff# no\nyes\n").prompts] == ["yes", "# said"]


def test_prompts_that_are_no_utf_8_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("a ring\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"cannot read prompts from .*prompts\.txt: line 2 is not UTF-8 text"):
        job(["--file", str(file)])
    with pytest.raises(RequestError, match="cannot read prompts from stdin: line 2 is not UTF-8 text"):
        plan(parsed(["-"]), io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("--prompt a --num-inference-steps 8", "a --steps 8"),
        ("a --height 64 --width 96", "a --size 96x64"),
        ("a --guidance-scale=2 --num_frames 5", "a --guidance 2 --frames 5"),
        ("a --negative-prompt b --num-images-per-prompt 3", "a --negative b -n 3"),
        ("a --model-path x --output-path y.png --random-seed 3", "a -m x -o y.png --seed 3"),
        ("a --max-sequence-length 9 --true-cfg-scale 2", "a --set max_sequence_length=9 --set true_cfg_scale=2"),
    ],
)
def test_names_that_other_programs_have_for_options_are_understood(words: str, same: str) -> None:
    theirs, ours = job(words.split()), job(same.split())
    assert (theirs.params, theirs.prompts, theirs.config, theirs.naming.output) == (
        ours.params, ours.prompts, ours.config, ours.naming.output,
    )  # fmt: skip


def test_options_become_parameters_and_configuration() -> None:
    wanted = job(shlex.split("a -n 2 --seed 7 --steps 8 --guidance 1.5 --size 96x64 --load dummy --dtype float32"))
    p = wanted.params
    assert (p.num_outputs_per_prompt, p.seed, p.num_inference_steps, p.guidance_scale) == (2, 7, 8, 1.5)
    assert (p.width, p.height) == (96, 64)
    assert (wanted.config.model.load, wanted.config.model.dtype) == ("dummy", "float32")


def test_a_size_is_rounded_to_a_legal_one_only_where_that_is_asked_for(tmp_path: Path) -> None:
    with chdir(tmp_path):
        with pytest.raises(RequestError, match="use 96 or 112"):
            job(["a red circle", "--size", "100x128"]).at_the_door()
        adjusted = job(["a red circle", "the Eiffel tower", "--size", "100x128", "--adjust"]).at_the_door()
    assert (adjusted.params.width, adjusted.params.height) == (96, 128)
    for row in (0, 1):
        assert adjusted.doubts[row][0] == "width=100 became 96, the nearest that this model makes"
    assert "none of the words" in adjusted.doubts[1][1]


def test_a_schedule_is_chosen_by_the_names_of_several_programs() -> None:
    for words in (["--flow-shift", "5", "--scheduler", "unipc"], ["--sample-shift=5", "--sample-solver=unipc"]):
        params = job(["a", *words, "--boundary-ratio", "0.9"]).params
        assert (params.flow_shift, params.scheduler, params.boundary_ratio) == (5.0, "unipc", 0.9)


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
        (["a", "--set", "output_type=latent"], "output_type cannot be chosen here: the command line saves pictures"),
        (["a", "--set", "num_outputs_per_prompt=2"], "--set num_outputs_per_prompt and --number choose the same"),
        (["a", "--steps", "3", "--set", "num_inference_steps=4"], "num_inference_steps and --steps choose the same"),
        (["a", "--size", "64x64", "--width", "64"], "--size 64x64 and --width 64 both choose the width"),
        (["a", "--negativ", "b"], r"unknown option --negativ\. Did you mean --negative\?"),
        (["a", "--sampler-steps", "3"], r"unknown option --sampler-steps\. Did you mean --steps\?"),
        (
            ["a", "-o", "a.gif"],
            r"'\.gif'; use one of \.aac, \.flac, \.jpeg, \.jpg, \.mp3, \.mp4, \.ogg, \.opus, \.pcm, \.png, \.txt",
        ),
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
    assert rest[1].endswith("    # the same picture again")


def test_no_file_has_where_a_component_lies_and_the_line_that_reads_it_does() -> None:
    given = {"component": ("--component", "text_encoder=mine.gguf"), "attention": ("--attention", "sdpa")}
    assert engine_settings(given) == {"attention": "sdpa"}
    line = same("a star " * 20, given, "a.png", 7)
    assert line == "omnimuse generate --from a.png --component text_encoder=mine.gguf"


def test_a_file_tells_which_others_made_it_and_is_not_drawn_again_without_them(tmp_path: Path) -> None:
    network, decoder = ["--component", "transformer=/home/me/z.gguf"], ["--component", "vae=v.safetensors"]
    plugin, again = ["--plugin", "my_package"], ["--from", f"{tmp_path}/a.png"]
    drawn(job(["a star", *network, *decoder, *plugin, "-o", f"{tmp_path}/a.png"]))
    settings = read_settings(tmp_path / "a.png")
    assert settings["files"] == {"transformer": "z.gguf", "vae": "v.safetensors"}
    assert settings["plugins"] == ["my_package"]
    lacking = [
        ([], r"weights of other files \(transformer=z.gguf, vae=v.safetensors\).* --component NAME=FILE, or .* none$"),
        (decoder, r"weights of other files \(transformer=z.gguf\), which are not in it"),
        ([*network, *decoder], r"drawn by packages \(my_package\), which are not in it; name them with --plugin"),
    ]
    for given, said in lacking:
        with pytest.raises(RequestError, match=said):
            job([*again, *given])
    assert job([*again, *network, *decoder, *plugin]).config.model.told == {
        name: settings[name] for name in ("files", "plugins")
    }
    assert job([*again, *plugin, "--component", "none"]).config.model.files == {}


ENGINES = (
    "",
    "--cache dbcache,threshold=0.1,first=2 --quantize transformer=int8,text_encoder=int4 --quantize-skip blocks.0,*.m",
    "--attention sdpa,cross=reference --compile --kernels plain --exact --load dummy --defaults-of a/b",
    "--vae-tiling --vae-tile 128 --vae-tile-overlap 0.5 --vae-slicing --vae-patch-parallel-size 2 --ulysses-degree 2",
    "--quantize int8 --cache none --writer vllm",
)
"""Options of an engine: each that changes a picture, at least once."""


def served(line: str) -> Config:
    return read_config(parser_of("serve").read(["m", *line.split()]))


@pytest.mark.parametrize("line", ENGINES)
def test_what_a_server_says_of_its_engine_in_a_file_chooses_the_same_engine(line: str, tmp_path: Path) -> None:
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png", {"prompt": "x", **told_of(served(line))})
    ranks = ["--ulysses-degree", "2"] if "ulysses" in line else []  # which no file chooses
    again, asked = job(["--from", f"{tmp_path}/a.png", *ranks]).config, served(line)
    assert again.told == asked.told and again.model.model == "m"
    for topic in ("attention", "cache", "quantize", "compile", "kernels", "decode", "contract", "writer"):
        assert getattr(again, topic) == getattr(asked, topic)
    assert (again.schedule.tier, again.parallel.vae_tiles) == (asked.schedule.tier, asked.parallel.vae_tiles)


def test_what_a_file_says_of_its_request_is_said_by_options(tmp_path: Path) -> None:
    told = {"prompt": "x", "cache": "dbcache,threshold=0.1", "engine": {"teacache": "0.4", "tier": "exact"}}
    words = words_of(told, tmp_path / "a.png")
    assert words == ["--tier=exact", "--cache=dbcache,threshold=0.1"]
    of_the_call = {"seed", "num_outputs_per_prompt", "output_type", "loras", "extra"}  # and what has a place of its own
    for name in {part.name for part in fields(DiffusionParams)} - of_the_call:
        assert words_of({name: 1}, tmp_path / "a.png") == [f"{option_of(name)}=1"]


def test_a_server_says_every_option_that_changes_a_picture() -> None:
    others = {"teacache", "attention-role", "lora-memory"}  # said by others, and what changes none
    assert {name for line in ENGINES for name in served(line).told} == set(engine_options()) - others


def test_no_adapters_are_worn_where_none_is_what_is_named() -> None:
    assert job(["x", "--lora", "none"]).params.loras is None
    with pytest.raises(RequestError, match=r"--lora none is to wear none, and --lora a:1 is one"):
        job(["x", "--lora", "none", "--lora", "a:1"])


def test_the_line_that_explains_a_model_has_what_was_chosen_for_its_engine() -> None:
    given = {"seed": ("--seed", "7"), "plugin": ("--plugin", "my_package"), "device": ("--device", "cpu")}
    assert explained("a folder", given) == 'omnimuse explain "a folder" --plugin my_package --device cpu'
    placed = {"deploy": ("--deploy", "pools.yaml"), "strategy": ("--strategy", "two.yaml")}
    assert explained("m", placed) == "omnimuse explain m --deploy pools.yaml --strategy two.yaml"


def test_a_file_says_nothing_of_pools_and_what_formats_several_had_is_theirs_to_say(tmp_path: Path) -> None:
    settings = {"prompt": "x", "dtype": "bfloat16+float32", "engine": {"quantize": "int8"}}
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png", settings)
    assert words_of(settings, tmp_path / "a.png") == ["--quantize=int8"]
    assert job(["--from", f"{tmp_path}/a.png"]).config.model.dtype == "auto"
    with pytest.raises(RequestError, match="have the option 'deploy', which chooses no engine"):
        words_of({"engine": {"deploy": "/etc/x"}}, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--attention-role", "joint=sdpa", "--attention-role", "self=reference", "--exact"], 3),
        (["--compile", "--cache", "fast", "--quantize", "int8"], 3),
        (["--ulysses-degree", "2", "--elastic", "--rank-wait", "60"], 0),  # how this machine did it
        (["--room", "1", "--deadline-class", "soon=2x", "--deadline-class", "late=never"], 0),
    ],
)
def test_a_file_s_engine_is_as_it_was_given_without_what_was_this_machine_s(words: list[str], kept: int) -> None:
    given = parsed(["a", "-m", "m", *words]).given
    back = words_of({"engine": engine_settings(given)}, Path("a.png"))
    again = parsed(["a", "-m", "m", *back])
    assert len(back) == kept
    assert again.given == (given if kept else {"model": given["model"]})
    assert read_config(again).parallel.ranks == 1


def test_a_short_line_says_everything_itself_and_a_long_one_lets_the_file_speak(tmp_path: Path) -> None:
    with chdir(tmp_path):
        short = drawn(job(["a red circle", "--negative", "it's blue", "--steps", "4", "--seed", "7"]))
        assert 'generate "a red circle" --steps 4 --negative "it\'s blue" --seed 7    # the same picture' in short.out
        long = drawn(job(["a long story " * 20, "-o", "my story.png"]))
        assert 'omnimuse generate --from "my story.png" -o "my story.png"    # the same picture again' in long.out
        lines = drawn(job(["two\nlines"]))
        assert "omnimuse generate --from picture-001.png    # the same picture again" in lines.out


def test_the_pictures_of_one_output_are_files_beside_each_other(tmp_path: Path) -> None:
    done = drawn(job(["one", "--seed", "5", "--quiet", "-o", str(tmp_path / "a.png")]), layers=3)
    names = ["a.png", "a-layer2.png", "a-layer3.png"]
    assert done.out.split() == [str(tmp_path / name) for name in names]
    for number, name in enumerate(names):
        with Image.open(tmp_path / name) as image:
            assert image.getpixel((0, 0)) == (number, 0, 0)
    assert {read_settings(tmp_path / name)["seed"] for name in names} == {5}
    told = json.loads(drawn(job(["one", "--json", "-o", str(tmp_path / "b.png")]), layers=2).out)
    assert [Path(file).name for file in told["results"][0]["files"]] == ["b.png", "b-layer2.png"]


def test_several_pictures_are_numbered_and_carry_their_own_seeds(tmp_path: Path) -> None:
    done = drawn(job(["one", "two", "-n", "2", "--seed", "5", "-o", str(tmp_path / "a.webp")]))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a-001.webp", "a-002.webp", "a-003.webp", "a-004.webp"]
    assert [read_settings(tmp_path / name)["seed"] for name in names] == [5, 6, 5, 6]
    assert [read_settings(tmp_path / name)["prompt"] for name in names] == ["one", "one", "two", "two"]
    assert 'a-003.webp  8x8, seed 5  "two"' in done.out


def test_json_is_one_object_with_files_seeds_settings_and_timings(tmp_path: Path) -> None:
    done = drawn(job(["a", "--json", "-n", "2", "--seed", "100", "-o", str(tmp_path / "a.png")]))
    record = json.loads(done.out)
    assert record["model"] == "omnimuse/shapes"
    assert set(record["seconds"]) == {"import", "load", "draw", "total"}
    [row] = record["results"]
    assert row["files"] == [str(tmp_path / "a-001.png"), str(tmp_path / "a-002.png")]
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
    assert [p.name for p in tmp_path.iterdir()] == ["a-001.png"]


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
    assert seen == [(1, 1), (2, 2), (3, 3)] * 2
    assert not preview.exists()


def test_an_interrupted_job_closes_the_engine_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = drawn(job(["a", "--preview", "-o", str(tmp_path / "a.png")]), interrupt=KeyboardInterrupt())
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1] == "omnimuse: interrupted"
    assert done.omni.closed
    assert list(tmp_path.iterdir()) == []


# -- one after the other, and an end before the end ----------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_picture_is_there_before_the_next_is_drawn(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "encode":
            seen.append(names(tmp_path))

    drawn(job(["a", "b", "-n", "2", "-o", f"{tmp_path}/p.png"]), watch=watch)
    assert [len(there) for there in seen] == [0, 1, 2, 3]


def test_pictures_have_the_names_of_their_prompts_whichever_is_done_first(tmp_path: Path) -> None:
    done = drawn(job(["a", "b", "-n", "2", "--seed", "5", "-o", f"{tmp_path}/p.png"]), backwards=True)
    told = [read_settings(tmp_path / name) for name in names(tmp_path)]
    assert [(row["prompt"], row["seed"]) for row in told] == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    assert [line.split()[0] for line in done.out.splitlines()[:4]] == [str(tmp_path / name) for name in names(tmp_path)]


def test_names_of_files_are_printed_while_the_rest_is_drawn_where_nothing_else_is(tmp_path: Path) -> None:
    wanted, out, printed = job(["a", "b", "--quiet", "-o", f"{tmp_path}/p.png"]).placed("image"), io.StringIO(), []
    omni = FakeOmni(wanted.config, watch=lambda event: printed.append(out.getvalue().count("\n")))
    draw(wanted, lambda config: lambda config: omni, stdout=out, stderr=io.StringIO())
    assert sorted(set(printed)) == [0, 1]
    assert out.getvalue().splitlines() == [str(tmp_path / name) for name in names(tmp_path)]


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = ["a", "it's", "c $HOME", "-n", "2", "--seed", "5", "-o", f"{tmp_path}/p.png"]
    first = drawn(job(words), interrupt=KeyboardInterrupt(), after=3)
    assert first.code == 130
    assert names(tmp_path) == ["p-001.png", "p-002.png", "p-003.png"]
    *_, said, line = first.err.splitlines()
    assert said == "omnimuse: interrupted: 3 kept, 3 left; go on with:"
    program, command, *again = shlex.split(line)
    assert (program, command) == ("omnimuse", "generate")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    rest = drawn(job(again))
    assert rest.code == 0
    assert rest.omni.drawn == [("it's", 6), ("c $HOME", 5), ("c $HOME", 6)]
    assert rest.out.startswith("3 of 6 are there already\n")
    assert len(names(tmp_path)) == 6
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    nothing = drawn(job(again))
    assert (nothing.code, nothing.out, nothing.omni.drawn) == (0, "6 of 6 are there already\n", [])


def test_going_on_with_prompts_from_stdin_says_that_they_are_needed_again(tmp_path: Path) -> None:
    words = ["-", "-o", f"{tmp_path}/p.png"]
    first = drawn(job(words, stdin="a\nb\n"), interrupt=KeyboardInterrupt(), after=1)
    line = first.err.splitlines()[-1]
    assert line.endswith("    # with the same lines on stdin")
    rest = drawn(job(shlex.split(line, comments=True)[2:], stdin="a\nb\n"))
    assert [prompt for prompt, _ in rest.omni.drawn] == ["b"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Terminated()])
def test_going_on_writes_no_second_time_what_tells_of_the_first_run(stop: BaseException, tmp_path: Path) -> None:
    words = ["a", "b", "-o", f"{tmp_path}/p.png", "--plot", f"{tmp_path}/t.png", f"--profile={tmp_path}/t.json.gz"]
    first = drawn(job(words), interrupt=stop, after=1)
    assert first.code == (130 if isinstance(stop, KeyboardInterrupt) else 143) and (tmp_path / "t.png").exists()
    assert f"omnimuse: {stopped(stop)}: 1 kept, 1 left; go on with:" in first.err
    (tmp_path / "t.json.gz").touch()
    rest = drawn(job(shlex.split(first.err.splitlines()[-1])[2:]))
    assert [prompt for prompt, _ in rest.omni.drawn] == ["b"]


def test_a_run_beside_older_files_goes_on_with_its_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "p-007.png").write_bytes(b"somebody's")
    first = drawn(job(["a", "b", "c", "-o", f"{tmp_path}/p.png"]), interrupt=KeyboardInterrupt(), after=1)
    rest = drawn(job(shlex.split(first.err.splitlines()[-1])[2:]))
    assert [prompt for prompt, _ in rest.omni.drawn] == ["b", "c"]
    assert names(tmp_path) == ["p-007.png", "p-008.png", "p-009.png", "p-010.png"]


def test_a_full_disk_keeps_what_is_done(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    done = drawn(job(["a", "b", "-o", f"{tmp_path}/p.png", "--json"]), interrupt=full, after=1)
    record = json.loads(done.out)
    assert done.code == 1
    assert (record["left"], record["stopped"]) == (
        1,
        "No space left on device; free some space, or choose another place",
    )
    assert record["go_on"] == f"omnimuse generate a b -o {tmp_path}/p.png --json --resume"
    assert [row["files"] for row in record["results"]] == [[f"{tmp_path}/p-001.png"]]


def test_going_on_refuses_files_that_were_made_from_something_else(tmp_path: Path) -> None:
    drawn(job(["a", "b", "--seed", "5", "-o", f"{tmp_path}/p.png"]))
    with pytest.raises(RequestError, match=r"p-001\.png was drawn from 'a', not from 'b'.*--resume needs the command"):
        drawn(job(["b", "a", "--seed", "5", "--resume", "-o", f"{tmp_path}/p.png"]))
    with pytest.raises(RequestError, match=r"p-001\.png has seed 5, not 6"):
        drawn(job(["a", "b", "--seed", "6", "--resume", "-o", f"{tmp_path}/p.png"]))
    (tmp_path / "p-001.png").write_bytes(b"text")
    with pytest.raises(RequestError, match=r"cannot read .*p-001\.png as a picture"):
        drawn(job(["a", "b", "--resume", "-o", f"{tmp_path}/p.png"]))


# -- where files go ------------------------------------------------------------------------------------------------


def test_no_file_is_ever_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    for name in ("a-001.png", "a-002.png"):
        assert drawn(job(["x", "--quiet", "-o", str(path)])).out == f"{tmp_path / name}\n"
    assert path.read_bytes() == b"old"
    assert drawn(job(["x", "--quiet", "--overwrite", "-o", str(path)])).out == f"{path}\n"
    assert read_settings(path)["prompt"] == "x"
    assert names(tmp_path) == ["a-001.png", "a-002.png", "a.png"]


def test_another_program_that_takes_the_name_meanwhile_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    done = drawn(job(["x", "--quiet", "-o", str(path)]), watch=lambda event: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert done.out == f"{tmp_path / 'a-001.png'}\n"


def test_a_picture_that_somebody_starts_from_is_not_replaced_by_what_is_drawn(tmp_path: Path) -> None:
    source = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(source)
    before = source.read_bytes()
    with chdir(tmp_path):
        drawn(job(["a blue circle", "--image", "picture.png"]))
    assert source.read_bytes() == before
    assert names(tmp_path) == ["picture-001.png", "picture.png"]


@pytest.mark.parametrize("output", ["new/", "new/deeper/"])
def test_a_folder_is_made_and_filled(tmp_path: Path, output: str) -> None:
    drawn(job(["a", "b", "-o", f"{tmp_path}/{output}"]))
    assert names(tmp_path / output) == ["picture-001.png", "picture-002.png"]
    drawn(job(["a", "b", "-o", f"{tmp_path}/new"]))
    assert "picture-002.png" in names(tmp_path / "new")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overwrite", "--resume"], "choose one"),
        (["--first", "-1"], "--first -1 is no number of a file; use 0 or more"),
        (["--first", "1"], r"p-001\.png is there already; leave out --first, or choose --overwrite or --resume"),
    ],
)
def test_names_that_make_no_sense_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "p-001.png").touch()
    with pytest.raises(RequestError, match=message):
        drawn(job(["a", *words, "-o", f"{tmp_path}/p.png"]))


def test_an_interrupt_waits_until_a_file_and_what_is_told_of_it_are_whole() -> None:
    done: list[str] = []

    def save(number: signal.Signals) -> None:
        with unbroken():
            signal.raise_signal(number)
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        save(signal.SIGINT)
    with pytest.raises(Terminated), terminable():
        save(signal.SIGTERM)
    assert done == ["whole", "whole"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# -- a part of a picture -------------------------------------------------------------------------------------------


def test_a_mask_and_margins_go_to_every_prompt_and_into_the_settings_of_what_is_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "p.png")
    Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)).save(tmp_path / "m.png")
    words = ["a", "b", "--image", f"{tmp_path}/p.png", "--mask", f"{tmp_path}/m.png", "--pad", "1, 2,3,4"]
    assert drawn(job([*words, "-o", f"{tmp_path}/out.png"])).code == 0
    settings = read_settings(tmp_path / "out-001.png")
    mask = job(words).prompts[1]["mask"]
    assert (settings["mask"], settings["pad"]) == (mask.digest, [1, 2, 3, 4])
    with pytest.raises(RequestError, match=r"was drawn from a picture"):
        job(["--from", f"{tmp_path}/out-001.png"])
    again = ["--from", f"{tmp_path}/out-001.png", "--image", f"{tmp_path}/p.png"]
    with pytest.raises(RequestError, match="was drawn with a mask, which is not in it; give it with --mask"):
        job(again)
    [prompt] = job([*again, "--mask", f"{tmp_path}/m.png"]).prompts
    assert (prompt["mask"], prompt["pad"]) == (mask, [1, 2, 3, 4])


@pytest.mark.parametrize("pad", ["64", "1,2,3", "1,2,3,x", "-1,0,0,0", "1.5,0,0,0"])
def test_margins_that_are_no_four_numbers_are_refused(pad: str) -> None:
    with pytest.raises(RequestError, match=r"is not LEFT,TOP,RIGHT,BOTTOM in pixels; write it like 64,0,64,0"):
        job(["a", f"--pad={pad}"])


# -- where the time went ---------------------------------------------------------------------------------------------


def test_a_plot_has_a_bar_for_the_command_and_one_for_every_prompt(tmp_path: Path) -> None:
    place = tmp_path / "plots" / "time.png"
    words = ["a red circle", "a blue square", "-o", str(tmp_path / "a.png"), "--plot", str(place)]
    assert drawn(job(words)).code == 0
    single = tmp_path / "one.png"
    told = drawn(job(["a red circle", "-o", str(tmp_path / "b.png"), "--plot", str(single)]))
    assert told.code == 0 and re.search(r"net\.blocks\.0 +2 +375\.000 +750\.000 +3 MiB\n", told.out)
    with Image.open(place) as two, Image.open(single) as one:
        assert two.height - one.height == 2 * GAP
    with pytest.raises(RequestError, match=r"time.png is there already; choose another name, or --overwrite"):
        job(words)
    with pytest.raises(RequestError, match="txt"):
        job(["a", "--plot", str(tmp_path / "time.txt")])


def test_a_plot_that_cannot_be_written_hides_nothing_of_what_was_drawn(tmp_path: Path) -> None:
    picture, place = tmp_path / "a.png", tmp_path / "plots" / "time.png"
    wanted = job(["a red circle", "-o", str(picture), "--plot", str(place), "--json"])
    place.parent.touch()
    told = drawn(wanted)
    record = json.loads(told.out)
    assert told.code == 1 and str(place.parent) in record["stopped"] and str(place.parent) in told.err
    assert record["results"][0]["files"] == [str(picture)] and picture.exists()


@pytest.mark.parametrize(
    ("number", "output", "plot"),
    [("1", "a.png", "a.png"), ("1", "a.png", "b/../a.png"), ("3", "a.png", "a-002.png")],
)
def test_a_plot_goes_where_no_picture_does(number: str, output: str, plot: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    words = ["a", "-n", number, "-o", str(tmp_path / output), "--plot", str(tmp_path / plot), "--overwrite"]
    with pytest.raises(RequestError, match="is where a picture itself goes; choose another name"):
        job(words).placed("image")


def test_a_prompt_of_several_lines_is_one_line_above_its_bar(tmp_path: Path) -> None:
    """Pillow would write the second one into the bar, and what follows it with it."""
    row = {"timings": {"denoise": 1.5}, "steps": {}, "bytes": {}, "blocks": {}, "block_bytes": {}}
    seconds = {"draw": 2.0, "total": 2.0}
    for name, prompt in (("one", "a red circle, a star"), ("several", "a red circle,\r\n  a star\n")):
        plot({"seconds": seconds, "results": [{"prompt": prompt, **row}]}, tmp_path / f"{name}.png")
    assert (tmp_path / "several.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_of_several_outputs_a_stage_and_a_block_is_told_of_the_one_whose_took_longest() -> None:
    row = spent_of(Spent())
    long, short = (
        Spent(
            timings={"denoise": sum(steps), "decode": decode},
            steps={"denoise": steps},
            held={"denoise": held, "decode": held[:1]},
            blocks={"net.blocks.0": steps, "net.blocks.1": (decode,)},
            blocks_held={"net.blocks.0": held, "net.blocks.1": held[:1]},
            needs=held[0],
        )
        for steps, decode, held in (((3.0, 1.0), 0.25, (5, 4)), ((0.5, 0.5, 0.5), 0.75, (9, 8, 7)))
    )
    for took in (long, short):
        keep_longest(row, spent_of(took))
    assert row["timings"] == {"denoise": 4.0, "decode": 0.75} and row["needs"] == 9
    assert row["steps"] == {"denoise": [3.0, 1.0]} and row["bytes"] == {"denoise": [5, 4], "decode": [9]}
    assert row["blocks"] == {"net.blocks.0": [3.0, 1.0], "net.blocks.1": [0.75]}
    assert row["block_bytes"] == {"net.blocks.0": [5, 4], "net.blocks.1": [9]}


def test_the_parts_of_a_bar_are_as_long_as_they_took_and_one_after_the_other() -> None:
    timings, steps = {"queue": 0.0, "denoise": 1.5}, {"denoise": [0.5, 1.0]}
    record = {
        "seconds": {"import": 1.0, "load": 1.0, "draw": 2.0, "total": 4.0},
        "results": [
            {"prompt": "a", "timings": timings, "steps": steps, "bytes": {"denoise": [7, 9]}},
            {"prompt": "failed", "timings": {}, "steps": {}, "bytes": {}},
        ],
    }
    bars = bars_of(record)
    assert [name for name, *_ in bars] == ["the command", "a"]
    assert spans(list(bars[0][1].values()), 100) == [(0, 99), (100, 199), (200, 399)]
    assert spans(list(bars[1][1].values()), 100) == [(0, 0), (0, 149)]
    assert spans(bars[1][2]["denoise"], 100) == [(0, 49), (50, 149)]
    assert line_of(*bars[1][1:]) == [(0.5, 7), (1.5, 9)], "the memory that was held when each step was done"


def test_a_recording_is_of_the_drawing_and_replaces_nothing(tmp_path: Path) -> None:
    place = tmp_path / "trace.json.gz"
    words = ["a red circle", "-o", str(tmp_path / "a.png"), "--profile", str(place)]
    assert drawn(job(words)).code == 0
    assert place.read_text() == "1 drawn"
    with pytest.raises(RequestError, match=r"--profile .* is there already"):
        job(words)
    with pytest.raises(RequestError, match=r"gz"):
        job(["a", "--profile", str(tmp_path / "trace.txt")])
