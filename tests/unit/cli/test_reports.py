"""`models`, `explain` and `doctor` say what is, for people and as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnimuse.cli import doctor, explain, models
from omnimuse.cli.app import parser_of
from omnimuse.cli.doctor import Finding
from omnimuse.cli.table import columns
from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.media.sandbox import Sandbox
from omnimuse.worker.threads import Room


def options(**values: object) -> argparse.Namespace:
    """Options as argparse would give them."""
    return argparse.Namespace(**values)


def explaining(*words: str) -> argparse.Namespace:
    """What argparse makes of the words after `omnimuse explain`."""
    parser = argparse.ArgumentParser()
    explain.add_options(parser)
    return parser.parse_args(words)


def test_columns_line_up_and_do_not_end_in_spaces() -> None:
    assert columns([("a", "b"), ("long", "")]) == "  a     b\n  long"
    assert columns([]) == ""


# -- models --------------------------------------------------------------------------------------------------------


def test_every_supported_family_is_listed_with_its_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.run(options(json=True, model=None)) == 0
    listing = json.loads(capsys.readouterr().out)
    assert all(row["family"] and row["pipeline"] and row["tasks"] for row in listing["supported"])
    [demo] = [row for row in listing["here"] if row["id"] == "omnimuse/shapes"]
    assert "ring" in demo["draws"]["shapes"] and demo["side"] == 128


def test_what_a_model_can_draw_is_told_where_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.run(options(json=False, model=None)) == 0
    told = capsys.readouterr().out
    assert "  omnimuse/shapes draws, at 128x128:\n    shapes: circle, square," in told


def test_models_on_this_machine_are_listed_with_their_folder() -> None:
    families = [{"family": "f", "pipeline": "P", "tasks": ["t"], "summary": "s", "models": ["o/n"], "known_by": "of P"}]
    text = models.text(families, [{"id": "a/b", "source": "bundled", "path": "/x"}])
    assert "f: s (t)\n    o/n\n    any folder or hub id of P\n" in text
    assert "  a/b  bundled  /x" in text
    assert "try: omnimuse explain a/b" in text


def test_no_model_on_this_machine_is_said_with_what_to_do() -> None:
    assert "on this machine: none; give `omnimuse generate -m` a hub id" in models.text([], [])


# -- explain -------------------------------------------------------------------------------------------------------

CHOICES = [
    Choice("place", "dtype", "bfloat16", "native"),
    Choice("place", "device", "cpu", "no other"),
    Choice("attention", "self", "sdpa", "default"),
]


def test_explain_prints_each_choice_with_its_reason_by_topic(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Config] = []

    def ask(config: Config, measure: str | None) -> list[Choice]:
        assert measure is None
        asked.append(config)
        return CHOICES

    assert explain.run(explaining("a/b", "--dtype", "float32", "--device", "cpu"), ask) == 0
    assert (asked[0].model.model, asked[0].model.dtype) == ("a/b", "float32")
    assert capsys.readouterr().out == (
        "place\n  dtype   bfloat16  native\n  device  cpu       no other\n\nattention\n  self  sdpa  default\n"
    )


def test_explain_as_json_is_a_list_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    explain.run(explaining("a/b", "--json"), lambda config, measure: CHOICES)
    assert json.loads(capsys.readouterr().out)[0] == {
        "topic": "place",
        "name": "dtype",
        "value": "bfloat16",
        "reason": "native",
    }


@pytest.mark.parametrize(
    ("words", "model", "size"),
    [
        (["--measure", "a/b"], "a/b", "default"),
        (["--measure", "a/b", "--json"], "a/b", "default"),
        (["--json", "a/b", "--measure"], "a/b", "default"),
        (["--measure", "64x32x5", "a/b"], "a/b", "64x32x5"),
        (["a/b", "--measure", "64x32"], "a/b", "64x32"),
        (["--measure=small", "a/b"], "a/b", "small"),
    ],
)
def test_a_model_behind_measure_is_the_model_and_a_size_is_the_size(words: list[str], model: str, size: str) -> None:
    for quiet in (False, True):  # one for the command, one for the layers of options
        args = parser_of("explain", quiet=quiet).read(words)
        assert (args.model, args.measure) == (model, size)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a/b", "--measure", "large"], "argument --measure: 'large' is no size; use small, default, or a size as WxH"),
        (["--measure=a/b"], "argument --measure: 'a/b' is no size"),
        (["--measure", "64x64"], "the following arguments are required: MODEL"),
    ],
)
def test_what_is_neither_a_size_nor_a_model_is_refused_as_what_it_stands_for(words: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        parser_of("explain").read(words)


# -- doctor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_only_a_problem_makes_the_doctor_exit_with_1(level: doctor.Level, code: int) -> None:
    def examine() -> Iterator[Finding]:
        yield Finding("x", "ok", "fine")
        yield Finding("y", level, "so so", "" if level == "ok" else "do this")

    assert doctor.run(options(json=False), examine) == code


def test_the_doctor_says_what_to_do_below_what_is_wrong() -> None:
    text = doctor.text([Finding("a", "ok", "fine"), Finding("disk", "problem", "full", "make room")])
    assert text.splitlines() == [
        "ok       a     fine",
        "problem  disk  full",
        "               -> make room",
        "problems: 1, warnings: 0",
    ]
    assert doctor.text([Finding("a", "ok", "fine")]).endswith("all is well")


def test_a_torchvision_that_does_not_import_beside_this_torch_is_a_problem() -> None:
    finding = doctor.unwanted("torchvision", "0.29", "2.13.0+cpu", lambda name: "RuntimeError: operator nms")
    assert finding.level == "problem"
    assert "does not import beside torch 2.13.0+cpu (RuntimeError: operator nms)" in finding.detail
    assert finding.advice.startswith("python -m pip uninstall torchvision")


def test_an_absent_or_working_torchvision_is_fine() -> None:
    assert doctor.unwanted("torchvision", None, "2.13.0", lambda name: "never asked").level == "ok"
    assert doctor.unwanted("torchvision", "0.29", "2.13.0", lambda name: None).level == "ok"


def test_an_import_is_tried_in_a_process_of_its_own() -> None:
    assert doctor.import_error("json") is None
    assert "No module named 'no_such_module'" in (doctor.import_error("no_such_module") or "")


def test_a_missing_package_is_a_problem_with_its_command() -> None:
    assert doctor.needed("diffusers", None) == Finding(
        "diffusers", "problem", "not installed", "python -m pip install diffusers"
    )


def test_a_device_that_torch_does_not_see_is_a_warning() -> None:
    assert doctor.accelerator("cpu", "a CPU build", has_nvidia=True).level == "warning"
    assert doctor.accelerator("cpu", "a CPU build", has_nvidia=False).level == "ok"


@pytest.mark.parametrize(
    ("room", "level", "detail"),
    [
        (Room(8), "ok", "8 for 8 cores: this process may use 8 cores"),
        (Room(1), "ok", "1 for 1 cores: this process may use 1 core"),
        (Room(8, quota=0.5), "ok", "1 for 8 cores: the container may use 0.5 of 8 cores"),
        (Room(8, omp_threads=4), "ok", "4 for 8 cores: OMP_NUM_THREADS says so"),
        (Room(8, omp_threads=1), "warning", "1 for 8 cores: OMP_NUM_THREADS says so"),
        (Room(2, omp_threads=16), "warning", "16 for 2 cores: OMP_NUM_THREADS says so"),
    ],
)
def test_the_doctor_says_how_many_threads_and_why(room: Room, level: str, detail: str) -> None:
    finding = doctor.thread_count(lambda: room)
    assert (finding.level, finding.detail) == (level, detail)


def test_a_number_of_threads_that_is_none_is_a_problem() -> None:
    def look() -> Room:
        raise ConfigError("OMP_NUM_THREADS=many is not a number of threads")

    assert doctor.thread_count(look).level == "problem"


@pytest.mark.parametrize(("free", "level"), [(5e8, "problem"), (5e9, "warning"), (5e10, "ok")])
def test_little_disk_is_a_warning_and_hardly_any_a_problem(free: float, level: str) -> None:
    assert doctor.disk(Path("/x"), free).level == level


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    assert doctor.writable("cache", Path("/proc/none"), "elsewhere").level == "problem"
    assert doctor.writable("cache", tmp_path / "not" / "yet", "elsewhere").level == "ok"
    assert not (tmp_path / "not").exists()


def sandbox_of(script: str) -> Finding:
    return asyncio.run(doctor.examine_sandbox(Sandbox(command=(sys.executable, "-c", script))))


def test_what_the_sandbox_lacks_is_a_warning_and_a_sandbox_that_does_not_start_is_a_problem() -> None:
    said = {"lacking": {"a network of its own": "Operation not permitted"}}
    assert sandbox_of("print('{\"lacking\": {}}')").level == "ok"
    lacking = sandbox_of(f"print({json.dumps(said)!r})")
    assert (lacking.level, lacking.detail) == ("warning", "without a network of its own (Operation not permitted)")
    assert "docs/sandbox.md" in lacking.advice
    assert sandbox_of("raise SystemExit(1)").level == "problem"
