"""Destinations are refused before any work, and files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.media.destination import check_destination, numbered, write_whole

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


def test_one_output_keeps_its_name_and_several_are_numbered_from_one() -> None:
    assert numbered(Path("x/demo.png"), 1) == [Path("x/demo.png")]
    assert numbered(Path("x/demo.png"), 2) == [Path("x/demo-1.png"), Path("x/demo-2.png")]


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
