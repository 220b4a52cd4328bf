"""A server's options from the command line, the environment and a file: every one of them, in this order."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnimuse.cli.app import main, parser_of
from omnimuse.cli.engine import engine_names, read_config
from omnimuse.cli.layered import Option, options_of, read_layered, warn_of_others
from omnimuse.cli.serve import chosen
from omnimuse.core.caches import cache_named
from omnimuse.core.errors import ConfigError, RequestError

OPTIONS = options_of(parser_of("serve"))
"""The one table: what the parser of `omnimuse serve` takes."""


def read(*words: str, **environment: str) -> argparse.Namespace:
    return read_layered(parser_of("serve"), parser_of("serve", quiet=True), words, environment)


def saying(option: Option, number: int) -> tuple[object, str, list[str]]:
    """The `number`th value of an option: as a file has it, as the environment has it, as a command line has it."""
    if option.flag:
        return True, "1", [option.word]
    one = {int: 3 + number, float: 1.5 + number}.get(option.kind, f"value-{number}")
    words = [f"{option.word}={one}" if option.word else str(one)]
    return [one] if option.many else one, str(one), words


def value(args: argparse.Namespace, option: Option) -> object:
    return vars(args)[option.dest]


def test_every_option_of_the_help_can_stand_in_a_file_and_in_the_environment() -> None:
    words = {word for action in parser_of("serve").actions() for word in action.option_strings}
    assert words - {option.word for option in OPTIONS.values()} == {"-h", "--help", "--debug", "--config"}
    assert "model" in OPTIONS and len(OPTIONS) > 30


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.kind in (int, float)])
def test_a_number_that_makes_no_sense_is_refused_by_the_name_of_its_option(name: str) -> None:
    option = OPTIONS[name]
    for text in ("-1",) if option.kind is int else ("-1", "nan", "inf"):
        with pytest.raises(ConfigError) as caught:
            chosen(read(f"{option.word}={text}"))
        assert option.dest in str(caught.value).replace("-", "_")


def test_a_port_is_one_that_there_is() -> None:
    with pytest.raises(ConfigError, match="--port 65536 is not allowed; use 1 to 65535"):
        chosen(read("--port", "65536"))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_line_counts_before_the_environment_before_the_file_before_the_default(
    name: str, tmp_path: Path
) -> None:
    option = OPTIONS[name]
    (in_file, _, file_words), (_, text, text_words), (_, _, line) = (saying(option, number) for number in range(3))
    file = tmp_path / "serve.toml"
    file.write_text(f"{name} = {json.dumps(in_file)}\n")
    expected = [parser_of("serve").read(words) for words in ([], file_words, text_words, line)]
    assert value(read(), option) == value(expected[0], option)
    assert value(read("--config", str(file)), option) == value(expected[1], option) != value(expected[0], option)
    set_there = {option.variable: text}
    assert value(read("--config", str(file), **set_there), option) == value(expected[2], option)
    assert value(read("--config", str(file), *line, **set_there), option) == value(expected[3], option)
    if option.flag:
        off = read("--config", str(file), **{option.variable: "off"})
        assert value(off, option) == value(expected[1 if option.dest != option.variable.lower() else 0], option)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_name_that_is_not_quite_an_option_is_refused_with_the_nearest(name: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(f"{name}x = 1\n")
    with pytest.raises(ConfigError, match=rf"there is no option '{name}x'\. Did you mean {name}\?"):
        read("--config", str(file))


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.takes != "text"])
def test_a_value_of_another_kind_is_refused_where_it_was_said(name: str, tmp_path: Path) -> None:
    option, file = OPTIONS[name], tmp_path / "serve.toml"
    file.write_text(f"{name} = {{}}\n")
    with pytest.raises(ConfigError, match=rf"serve\.toml: {name}=.* use {option.takes}"):
        read("--config", str(file))
    if not option.many:
        with pytest.raises(ConfigError, match=rf"OMNIMUSE_{option.variable}='perhaps' is not understood; use"):
            read(**{option.variable: "perhaps"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = ", "is no TOML"),
        ("port = true", "port=True is not understood; use a whole number"),
        ("exact = true\ntier = 'fast'", "say the same thing twice"),
        ("max-queue = 1\nmax_queue = 2", "say the same thing twice"),
        ("debug = true", "belongs on the command line"),
        ("[engine]\ndtype = 'float32'", "there is no option 'engine'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read("--config", str(tmp_path / "serve.toml"))


def test_a_file_that_is_not_there_is_refused_and_the_environment_may_name_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--config", str(tmp_path / "nothing.toml")]) == 2
    assert "nothing.toml cannot be read" in capsys.readouterr().err
    (tmp_path / "serve.toml").write_text("port = 9\n")
    assert read(CONFIG=str(tmp_path / "serve.toml")).port == 9


def test_a_variable_that_sets_nothing_is_told_with_the_nearest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment = {"MAX_QEUE": "3", "FAULT": "worker.step:1:kill", "VLLM_PYTHON": "python3"}
    with caplog.at_level(logging.WARNING):
        read(**environment)
        warn_of_others(environment, parser_of("serve"))
    assert [record.getMessage() for record in caplog.records] == [
        "OMNIMUSE_MAX_QEUE sets nothing here; did you mean OMNIMUSE_MAX_QUEUE?"
    ]


@pytest.mark.parametrize(
    ("words", "environment", "in_file", "cache"),
    [
        (["--teacache", "0.2"], {"CACHE": "fast"}, "", "teacache,threshold=0.2"),
        (["--cache", "none"], {"TEACACHE": "0.2"}, "cache = 'fast'", "none"),
        ([], {"TEACACHE": "0.3"}, "cache = 'fast'", "teacache,threshold=0.3"),
        ([], {}, "teacache = 0.3", "teacache,threshold=0.3"),
    ],
)
def test_of_two_options_that_mean_one_thing_the_one_that_counts_before_the_other_is_alone(
    words: list[str], environment: dict[str, str], in_file: str, cache: str, tmp_path: Path
) -> None:
    (tmp_path / "serve.toml").write_text(in_file)
    made = read_config(read("--config", str(tmp_path / "serve.toml"), *words, **environment))
    assert made.cache == cache_named(cache)
    with pytest.raises(ConfigError, match="both choose the step cache"):
        read_config(read(CACHE="fast", TEACACHE="0.2"))


@pytest.mark.parametrize(
    ("words", "environment", "roles"),
    [
        (["--attention-role", "cross=sdpa"], {"ATTENTION": "sdpa,cross=flex,joint=flex"}, ("sdpa", "flex")),
        (["--attention", "sdpa,joint=flex"], {"ATTENTION_ROLE": "cross=flex,joint=sdpa"}, ("flex", "flex")),
    ],
)
def test_a_role_of_attention_takes_what_counts_before_and_others_what_was_said_elsewhere(
    words: list[str], environment: dict[str, str], roles: tuple[str, str]
) -> None:
    made = read_config(read(*words, **environment)).attention
    assert (made.default, made.per_role["cross"], made.per_role["joint"]) == ("sdpa", *roles)
    with pytest.raises(ConfigError, match="says twice what cross take"):
        read_config(read(ATTENTION="sdpa,cross=flex", ATTENTION_ROLE="cross=sdpa"))


def test_the_help_tells_of_the_file_the_environment_and_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "command line counts before the environment, that before the file, that before the default" in said


def test_an_unknown_option_of_the_command_line_is_still_refused() -> None:
    with pytest.raises(RequestError, match="unknown option --max-qeue"):
        read("--max-qeue", "3")


def test_what_is_set_in_the_environment_is_read_and_an_empty_variable_is_as_good_as_none() -> None:
    program = "from omnimuse.core.environment import Environment; print(sorted(Environment.options().items()))"
    there = {**os.environ, "OMNIMUSE_PORT": "9", "OMNIMUSE_HOST": "", "OTHER_PORT": "8"}
    told = subprocess.run([sys.executable, "-c", program], env=there, capture_output=True, text=True, check=True)
    assert "('PORT', '9')" in told.stdout and "HOST" not in told.stdout and "8" not in told.stdout


def test_what_is_wrong_with_a_value_is_told_by_where_it_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNIMUSE_CACHE", "fastt")
    assert main(["serve", "omnimuse/shapes"]) == 2
    assert "cache='fastt' is not known; did you mean 'fast'? (so says OMNIMUSE_CACHE)" in capsys.readouterr().err
    monkeypatch.delenv("OMNIMUSE_CACHE")
    (tmp_path / "a.toml").write_text('quantize = "int9"\n')
    assert main(["serve", "omnimuse/shapes", "--config", str(tmp_path / "a.toml")]) == 2
    assert "(so says " in (told := capsys.readouterr().err) and "a.toml: quantize)" in told
    assert main(["serve", "omnimuse/shapes", "--cache", "fastt"]) == 2
    assert "so says" not in capsys.readouterr().err


STARTING = ("generate", "chat", "speak", "explain", "warm", "calibrate", "parity")
"""The commands, besides `serve`, that start or explain an engine."""
WITH = {"speak": ["hello", "-m", "m"], "generate": ["a red circle", "-m", "m"], "chat": ["m"], "explain": ["m"]}


@pytest.mark.parametrize("command", STARTING)
def test_every_command_that_starts_an_engine_has_its_choices_from_the_environment_and_nothing_else(
    command: str,
) -> None:
    words = WITH.get(command, ["m", "a red circle"] if command != "warm" else ["m"])

    def told(*more: str, **environment: str) -> argparse.Namespace:
        return read_layered(parser_of(command), parser_of(command, quiet=True), [*words, *more], environment)

    chosen_there = {"ATTENTION": "sdpa", "ATTENTION_ROLE": "joint=reference", "COMPILE": "1"}
    set_there = {**chosen_there, "SEED": "9", "CONFIG": "none"}
    config = read_config(told(**set_there))
    assert config.attention.default == "sdpa" and config.attention.per_role == {"joint": "reference"}
    assert config.compile.mode == "blocks"
    said = read_config(told("--attention", "reference", **set_there)).attention
    assert (said.default, said.per_role) == ("reference", {"joint": "reference"})
    with pytest.raises(ConfigError, match="OMNIMUSE_THREADS='many' is not understood; use a whole number"):
        told(THREADS="many")
    options = {option.dest for option in options_of(parser_of(command)).values()}
    known = {action.dest for action in parser_of(command).actions()}
    assert options == set(engine_names()) & known - {"dtype"}  # which the build reads, for all doors
    assert told(**set_there).given["attention"] == ("--attention", "sdpa")


@pytest.mark.parametrize("command", ["bench", "convert", "doctor", "models", "quantize", "simulate", "worker"])
def test_the_environment_chooses_nothing_of_a_command_that_starts_no_engine(command: str) -> None:
    assert options_of(parser_of(command)) == {}


def test_a_choice_of_the_environment_is_named_where_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OMNIMUSE_QUANTIZE", "int9")
    monkeypatch.setenv("OMNIMUSE_ATENTION", "sdpa")
    monkeypatch.setenv("OMNIMUSE_PORT", "9000")  # an option of another command is no mistake
    with caplog.at_level(logging.WARNING):
        assert main(["explain", "omnimuse/shapes"]) == 2
    assert "quantize='int9' is not allowed" in (said := capsys.readouterr().err) and "OMNIMUSE_QUANTIZE)" in said
    assert [record.getMessage() for record in caplog.records] == [
        "OMNIMUSE_ATENTION sets nothing here; did you mean OMNIMUSE_ATTENTION?"
    ]
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert "OMNIMUSE_OFFLOAD=layers is --offload layers" in " ".join(capsys.readouterr().out.split())
