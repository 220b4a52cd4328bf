"""Where offloaded weights wait: what a killed process leaves behind, and which folders are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnimuse.core.errors import ConfigError, EngineDeadError
from omnimuse.offload.stores import FileStore

PROGRAM = """
import sys, time
from pathlib import Path
from omnimuse.offload.stores import FileStore
store = FileStore(Path(sys.argv[1]))
arenas = [store.add(2**22, lent=True) for _ in range(2)]
store.content(arenas[0]).fill_(7)
store.expect(arenas[0])
assert store.fetch(arenas[0])[-1] == 7
print("written", flush=True)
time.sleep(600)
"""


def test_a_process_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_arenas_keep_what_was_written_apart_from_each_other(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    arenas = [store.add(size, lent=False) for size in (5, 10_000, 0, 70)]
    for number, arena in enumerate(arenas):
        store.content(arena).fill_(number)
    for number, (arena, size) in enumerate(zip(arenas, (5, 10_000, 1, 70), strict=True)):
        assert torch.equal(store.fetch(arena), torch.full((size,), number, dtype=torch.uint8))
    with store.lend(arenas[1]) as lent:
        lent.fill_(9)
    assert store.fetch(arenas[1])[0] == 1, "what is lent is a copy"


def test_an_arena_is_read_to_its_end_whatever_comes_at_once_and_one_that_was_cut_ends_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, preadv = FileStore(tmp_path), os.preadv
    first, second = (store.add(10_000, lent=False) for _ in range(2))
    for arena in (first, second):
        store.content(arena).copy_(torch.arange(10_000) % 251)
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: preadv(file, [parts[0][:999]], at))
    assert torch.equal(store.fetch(first), store.content(first))
    os.ftruncate(store._file, store._places[second][0] + 5000)
    with pytest.raises(EngineDeadError, match="was cut"):
        store.fetch(second)


@pytest.mark.parametrize("make", [True, False])
@pytest.mark.parametrize("below", ["", "new/one"])
def test_a_folder_that_is_a_file_or_below_one_is_refused_by_its_own_name(
    make: bool, below: str, tmp_path: Path
) -> None:
    path = tmp_path / "occupied"
    path.write_text("")
    with pytest.raises(ConfigError, match=f"folder={path / below} cannot be used"):
        FileStore(path / below, make=make)


def test_a_folder_is_made_where_that_is_wanted(tmp_path: Path) -> None:
    for make in (False, True):
        FileStore(tmp_path / "new/one", make=make).close()
        assert (tmp_path / "new/one").is_dir() is make


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from omnimuse.core.errors import ConfigError
from omnimuse.offload.stores import FileStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    FileStore(Path(sys.argv[1]) if len(sys.argv) > 1 else None).add(2**24, lent=False)
except ConfigError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"offload folder={tmp_path} has no room for 16 MiB of weights" in said
    assert "make room or choose another\n" in said
    here = {**os.environ, "TMPDIR": str(tmp_path)}
    said = subprocess.run(command[:-1], check=True, capture_output=True, text=True, env=here).stdout
    assert f"the system's folder for temporary files, {tmp_path}, has no room for 16 MiB of weights" in said
    assert "make room or choose another with TMPDIR" in said, "an engine that falls asleep has no folder of its own"
