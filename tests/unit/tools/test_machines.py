"""The runner of `make test-machines`: what it sets, what it prints, what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from tools.machines import COMPUTING, MACHINES, Machine, Part, busy, main, run


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plugins of libraries, which take seconds to import in each of the processes that run tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


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


def test_no_machine_meets_what_was_compiled_for_another(tmp_path: Path) -> None:
    """torch would take code with vectors for a processor that is to have none, and not compile it."""
    noted = tmp_path / "noted"
    file = write(tmp_path, f"open({str(noted)!r}, 'a').write(os.environ['TORCHINDUCTOR_CACHE_DIR'] + chr(10))")
    assert run(Machine("one"), [file]) and run(Machine("other"), [file])
    one, other = noted.read_text().split()
    assert one != other and not Path(one).exists()


def test_what_failed_is_named_and_the_outcome_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "one-thread", write(tmp_path, "assert os.environ['OMP_NUM_THREADS'] == '2'")]) == 1
    assert "test_it.py::test_it" in capsys.readouterr().out


def test_where_nothing_has_its_turn_nothing_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_none.py").write_text("")
    assert run(Machine("one"), [str(tmp_path / "test_none.py")])
    assert "passed" in capsys.readouterr().out and not run(Machine("one"), [str(tmp_path / "test_nowhere.py")])


def test_neighbours_are_busy_and_gone_afterwards() -> None:
    with busy(2):
        alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        neighbours = [child for child in alive if "while os.getppid()" in " ".join(child.cmdline())]
        assert len(neighbours) == 2
    assert not any(neighbour.is_running() for neighbour in neighbours)


def test_neighbours_end_with_a_run_that_is_killed() -> None:
    body = "from tools.machines import busy\nwith busy(1) as found: print(found[0].pid, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", body], stdin=PIPE, stdout=PIPE, text=True) as run_of_it:
        assert run_of_it.stdout is not None
        neighbour = psutil.Process(int(run_of_it.stdout.readline()))
        run_of_it.kill()
    neighbour.wait(timeout=100)


def test_each_folder_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (tmp_path / name for name in ("one", "other"))
    for folder in (one, other):
        folder.mkdir()
    files = [write(one, "pass"), write(other, "assert False")]
    assert main(["--only", "one-thread", *files]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("one-thread")]
    assert [("passed" in line, "FAILED" in line) for line in lines] == [(True, False), (False, True)]
    assert all(line.endswith(f"--only one-thread {file})") for line, file in zip(lines, files, strict=True))


def test_a_turn_is_given_on_and_is_a_part_of_the_command_that_runs_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "one-thread", "--turn", "99", "tests/unit/test_order.py"]) == 1
    assert "--only one-thread --turn 99 tests/unit/test_order.py" in capsys.readouterr().out


def test_every_machine_is_listed_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "busy: beside 2 busy processes" in listed
    assert "avx2-products: ONEDNN_MAX_CPU_ISA=AVX2" in listed


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_parts_together_are_everything_once_and_every_machine_has_a_share_of_each(count: int) -> None:
    numbers = range(len(MACHINES))
    parts = [
        [(test, m) for m in numbers for test in Part(k, count).of(list(COMPUTING), m)] for k in range(1, count + 1)
    ]
    assert Counter(pair for part in parts for pair in part) == Counter((test, m) for test in COMPUTING for m in numbers)
    assert all({machine for _, machine in part} == set(numbers) for part in parts)


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "x/y", "/4"])
def test_what_is_no_part_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--part", text])
    assert "is no part; write 2/4 for the second of four" in capsys.readouterr().err


def test_all_that_computes_is_there() -> None:
    assert [test for test in COMPUTING if not Path(test).exists()] == []
    assert "tests/invariants/test_tiers.py" in COMPUTING
