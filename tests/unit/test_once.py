"""What is made once a run: whole or not there, and by one of those who ask at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.once import Once

ROOT = Path(__file__).resolve().parents[2]
ASK = """
import sys, time
from pathlib import Path
from tests.once import Once

def make(folder):
    folder.mkdir()
    with (folder.parent / "made").open("a") as made:
        made.write("once\\n")
    (folder / "first").touch()
    time.sleep(0.2)
    (folder / "second").touch()

found = Once(Path(sys.argv[1])).folder("both", make)
assert sorted(path.name for path in found.iterdir()) == ["first", "second"]
"""


def test_of_many_processes_one_makes_it_and_all_get_it_whole(tmp_path: Path) -> None:
    asking = [subprocess.Popen([sys.executable, "-c", ASK, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [each.wait() for each in asking] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "once\n"


def test_what_could_not_be_made_is_not_there_and_is_tried_again(tmp_path: Path) -> None:
    once = Once(tmp_path)

    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise ArithmeticError("no further")

    with pytest.raises(ArithmeticError, match="no further"):
        once.folder("it", half)
    made = once.folder("it", lambda folder: folder.mkdir())
    assert list(made.iterdir()) == []
    assert once.folder("it", half) == made, "it is there, and nobody makes it again"
