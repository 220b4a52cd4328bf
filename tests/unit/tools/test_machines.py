"""The runner of `make test-machines`: what it sets, what it prints, what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tools.machines import Machine, busy, main, run


def write(folder: Path, body: str) -> str:
    file = folder / "test_it.py"
    file.write_text(f"import os\ndef test_it():\n    {body}\n")
    return str(file)


def test_tests_see_the_environment_of_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "assert os.environ['A_MACHINE'] == 'old'")
    assert run(Machine("old", {"A_MACHINE": "old"}), [file])
    line = capsys.readouterr().out
    assert line.startswith("old ") and "passed" in line and "python -m tools.machines --only old" in line
    assert not run(Machine("new", {"A_MACHINE": "new"}), [file])
    assert "FAILED" in capsys.readouterr().out


def test_what_failed_is_named_and_the_outcome_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "one-thread", write(tmp_path, "assert os.environ['OMP_NUM_THREADS'] == '2'")]) == 1
    assert "test_it.py::test_it" in capsys.readouterr().out


def test_neighbours_are_busy_and_gone_afterwards() -> None:
    with busy(2):
        neighbours = [child for child in psutil.Process().children() if "while True" in " ".join(child.cmdline())]
        assert len(neighbours) == 2
    assert not any(neighbour.is_running() for neighbour in neighbours)


def test_every_machine_is_listed_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "busy: beside 2 busy processes" in listed
    assert "avx2-products: ONEDNN_MAX_CPU_ISA=AVX2" in listed
