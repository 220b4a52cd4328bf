"""Destinations are refused before any work, and files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.media.destination import check_destination, destination, free_names, numbered, write_whole

SUFFIXES = (".png", ".jpg", ".webp")


def test_a_new_file_in_a_folder_that_can_be_made_is_accepted_and_nothing_is_left_behind(
    tmp_path: Path,
) -> None:
    check_destination(tmp_path / "new" / "deeper" / "a.PNG", SUFFIXES)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused_with_the_allowed_ones_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'\.pgn'.*\.jpg, \.png, \.webp.*did you mean a\.png\?") as caught:
        check_destination(tmp_path / "a.pgn", SUFFIXES)
    assert caught.value.param == "output"


def test_a_name_without_a_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"a has no suffix; use one of"):
        check_destination(tmp_path / "a", SUFFIXES)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(RequestError, match="is a folder; name a file in it"):
        check_destination(tmp_path / "a.png", SUFFIXES)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="file is a file, not a folder"):
        check_destination(tmp_path / "file" / "sub" / "a.png", SUFFIXES)


def test_a_folder_that_refuses_files_is_refused_with_the_reason() -> None:
    with pytest.raises(RequestError, match=r"the folder /proc refuses new files \(.+\); choose another place"):
        check_destination(Path("/proc/a.png"), SUFFIXES)


def test_numbers_in_names_sort_as_they_count() -> None:
    assert numbered(Path("x/demo.png"), 2) == [Path("x/demo-001.png"), Path("x/demo-002.png")]
    many = [path.name for path in numbered(Path("a.png"), 1200, first=900)]
    assert many == sorted(many)
    assert (many[0], many[-1]) == ("a-0900.png", "a-2099.png")


def test_a_name_that_is_taken_is_followed_by_the_next_free_number(tmp_path: Path) -> None:
    path = tmp_path / "de.mo.png"
    assert free_names(path, 1) == [path]
    assert [name.name for name in free_names(path, 2)] == ["de.mo-001.png", "de.mo-002.png"]
    path.touch()
    assert [name.name for name in free_names(path, 1)] == ["de.mo-001.png"]
    for name in ("de.mo-7.png", "de.mo-009.jpg", "de-mo-010.png", "de.mo-old.png"):
        (tmp_path / name).touch()
    assert [name.name for name in free_names(path, 1)] == ["de.mo-008.png"]
    assert [name.name for name in free_names(path, 2)] == ["de.mo-008.png", "de.mo-009.png"]


def test_a_link_that_leads_nowhere_is_a_name_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    assert free_names(tmp_path / "a.png", 1) == [tmp_path / "a-001.png"]


def test_a_folder_is_where_the_file_goes_whether_it_exists_or_not(tmp_path: Path) -> None:
    assert destination(None, "picture.png") == Path("picture.png")
    assert destination(f"{tmp_path}/new/", "picture.png") == tmp_path / "new/picture.png"
    assert destination(str(tmp_path), "picture.png") == tmp_path / "picture.png"
    assert destination("some/a.webp", "picture.png") == Path("some/a.webp")


def test_a_file_that_may_not_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.png", b"old", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a.png", b"new", replace=False)
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_is_replaced_whole_and_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    write_whole(path, b"old")
    write_whole(path, b"new one")
    assert path.read_bytes() == b"new one"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"a\.png"):
        write_whole(tmp_path / "a.png", b"content")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_is_told_with_the_file_that_was_to_be(tmp_path: Path) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.png'") as refused:
        write_whole(tmp_path / "a.png", b"content", sync=full)
    assert refused.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


WRITES = """
import os, sys, time
from contextlib import ExitStack
from pathlib import Path
from omnimuse.media.destination import write_whole

def wait(handle):
    print("writing", flush=True)
    time.sleep(60)

write_whole(Path(sys.argv[1]), b"half", sync=wait)
"""


def test_what_a_killed_process_left_is_swept_and_never_what_another_one_writes(tmp_path: Path) -> None:
    other = tmp_path / ".a.png.x.part"
    other.write_bytes(b"of another program")
    with ExitStack() as stack:
        killed, living = (
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path / name)], stdout=subprocess.PIPE)
            )
            for name in ("a.png", "b.png")
        )
        for each in (killed, living):
            assert each.stdout is not None and each.stdout.readline() == b"writing\n"
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.glob(".omnimuse-*.part"))) == 2
        write_whole(tmp_path / "c.png", b"whole")
        [left] = tmp_path.glob(".omnimuse-*.part")
        living.kill()
    assert left.read_bytes() == b"half" and other.exists()


def test_a_name_as_long_as_a_disk_takes_is_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'字' * 83}.png"
    write_whole(path, b"whole")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
