"""Files of results: whole or not there, private, named by the server only; and downloads of them by ranges."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from starlette.requests import Request

from omnimuse.core.errors import ConfigError, StorageError
from omnimuse.deploy.wire import MadeFile
from omnimuse.server.errors import ApiError
from omnimuse.server.http.download import download, find_range
from omnimuse.server.jobs.files import Files, new_file_id, new_job_file_id
from tests.server.asgi import Answer, call, scope


def spooled(files: Files, content: bytes = b"a film", name: str = "abc-0.mp4") -> MadeFile:
    """A file as a worker leaves it."""
    (files.spool / name).write_bytes(content)
    return MadeFile(name, len(content), hashlib.sha256(content).hexdigest(), 1, 64, 32)


def test_the_folders_are_for_this_user_only(tmp_path: Path) -> None:
    files = Files(tmp_path / "data")
    for folder in (tmp_path / "data", files.spool, tmp_path / "data" / "files"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_there_keeps_its_mode_and_what_is_in_it_is_private(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o2750)
    files = Files(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o7777 == 0o2750
    for folder in (files.spool, tmp_path / "data" / "files"):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(ConfigError, match="choose another --data folder"):
        Files(tmp_path / "data")


def test_taking_a_file_empties_the_spool(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with files.take(spooled(files)) as file:
        assert file.read() == b"a film"
    assert list(files.spool.iterdir()) == []


def test_a_kept_file_moves_under_a_new_name(tmp_path: Path) -> None:
    files = Files(tmp_path)
    name = files.keep(spooled(files), file_id := new_file_id())
    assert name == f"{file_id}.mp4"
    assert files.path(name).read_bytes() == b"a film"
    assert list(files.spool.iterdir()) == []
    files.remove(name)
    files.remove(name)
    assert not files.path(name).exists()


def test_a_file_that_is_not_what_was_made_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    made = spooled(files)
    (files.spool / made.name).write_bytes(b"half")
    with pytest.raises(StorageError, match="4 bytes on disk and 6 were made"):
        files.keep(made, new_file_id())
    with pytest.raises(StorageError, match="4 bytes on disk"):
        files.take(made)


@pytest.mark.parametrize("name", ["../jobs.sqlite", "a/b.mp4", ".hidden.mp4", "", "x", "/etc/passwd", "a.mp4\n"])
def test_a_name_that_is_no_bare_file_name_reaches_no_file(tmp_path: Path, name: str) -> None:
    files = Files(tmp_path)
    made = MadeFile(name, 1, "", 1, 1, 1)
    with pytest.raises(StorageError):
        files.take(made)
    with pytest.raises(StorageError):
        files.discard(made)
    with pytest.raises(ValueError, match="not the name of a kept file"):
        files.path(name)


@pytest.mark.parametrize("file_id", ["../" + "0" * 32, "0" * 31, "film", "job-0"])
def test_a_file_is_kept_under_ids_of_ours_only(tmp_path: Path, file_id: str) -> None:
    files = Files(tmp_path)
    with pytest.raises(ValueError, match="no file id"):
        files.keep(spooled(files), file_id)


def test_a_sweep_removes_the_files_of_no_job_and_leaves_those_of_links(tmp_path: Path) -> None:
    files = Files(tmp_path)
    mine = files.keep(spooled(files), new_job_file_id())
    orphan = files.keep(spooled(files), new_job_file_id())
    link = files.keep(spooled(files), new_file_id())
    assert files.sweep({mine}) == 1
    assert [files.path(name).exists() for name in (mine, orphan, link)] == [True, False, True]


def test_files_of_links_expire_by_age_and_those_of_jobs_do_not(tmp_path: Path) -> None:
    files = Files(tmp_path)
    mine = files.keep(spooled(files), new_job_file_id())
    old, young = (files.keep(spooled(files), new_file_id()) for _ in range(2))
    for name in (mine, old):
        os.utime(files.path(name), (0, 0))
    assert files.expire(3600) == 1
    assert [files.path(name).exists() for name in (mine, old, young)] == [True, False, True]


def test_a_start_empties_the_spool(tmp_path: Path) -> None:
    files = Files(tmp_path)
    spooled(files)
    files.empty_spool()
    assert list(files.spool.iterdir()) == []


def test_a_disk_with_less_than_the_reserve_is_full(tmp_path: Path) -> None:
    assert Files(tmp_path, reserve=0).storage_ok()
    assert not Files(tmp_path, reserve=2**62).storage_ok()


def test_the_log_tells_once_that_the_disk_is_full_and_once_that_it_has_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Files(tmp_path)
    away = tmp_path / "away"
    for there in (True, False, False, True, True):
        if there and away.exists():
            away.rename(files.spool)
        elif not there and files.spool.exists():
            files.spool.rename(away)
        assert files.storage_ok() is there
    [gone, back] = [record.getMessage() for record in caplog.records]
    assert "nearly full, or gone: nothing new is taken on" in gone and "has room again" in back


# -- downloads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=2-5", (2, 5)),
        ("bytes=2-", (2, 9)),
        ("bytes=2-99", (2, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-99", (0, 9)),
        (" Bytes = 1 - 2 ", (1, 2)),
        # What makes no sense is ignored (RFC 9110).
        ("", None),
        ("bytes", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=a-b", None),
        ("bytes=1", None),
        ("bytes=--5", None),
        ("bytes=+1-5", None),
        ("bytes=1-²", None),
        ("lines=1-2", None),
        (f"bytes=0-{'9' * 5000}", None),
    ],
)
def test_a_range_is_read(header: str, span: tuple[int, int] | None) -> None:
    assert find_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=0-1,3-4", "bytes=" + "0-," * 1000])
def test_a_range_outside_the_file_and_several_ranges_are_refused(header: str) -> None:
    with pytest.raises(ApiError) as caught:
        find_range(header, 10)
    assert (caught.value.status, caught.value.code) == (416, "invalid_range")
    assert caught.value.headers["content-range"] == "bytes */10"


CONTENT = bytes(range(256)) * 4096  # 1 MiB: several chunks


def fetch(tmp_path: Path, headers: dict[str, str], method: str = "GET") -> Answer:
    """What a client gets of a file with CONTENT."""
    path = tmp_path / "film.mp4"
    path.write_bytes(CONTENT)

    async def app(asked, receive, send) -> None:
        response = await download(Request(asked, receive), path, "film.mp4", "tag")
        path.unlink()  # as a DELETE in the middle
        await response(asked, receive, send)

    return asyncio.run(call(app, scope(method, "/", headers)))


def test_a_download_has_the_whole_file_even_when_it_is_removed_meanwhile(tmp_path: Path) -> None:
    answer = fetch(tmp_path, {})
    assert (answer.status, answer.whole, answer.content) == (200, True, CONTENT)
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["etag"] == '"tag"'
    assert answer.headers["content-disposition"] == 'attachment; filename="film.mp4"'


def test_a_range_of_a_download(tmp_path: Path) -> None:
    answer = fetch(tmp_path, {"range": "bytes=300000-700000"})
    assert (answer.status, answer.content) == (206, CONTENT[300000:700001])
    assert answer.headers["content-range"] == f"bytes 300000-700000/{len(CONTENT)}"
    assert answer.headers["content-length"] == "400001"


def test_a_head_has_the_headers_alone(tmp_path: Path) -> None:
    answer = fetch(tmp_path, {"range": "bytes=0-9"}, "HEAD")
    assert (answer.status, answer.content, answer.headers["content-length"]) == (206, b"", "10")


@pytest.mark.parametrize(("tag", "status"), [('"tag"', 206), ('"other"', 200), ('W/"tag"', 200), ("yesterday", 200)])
def test_a_range_is_of_the_version_that_the_client_has_or_the_file_comes_whole(
    tmp_path: Path, tag: str, status: int
) -> None:
    assert fetch(tmp_path, {"range": "bytes=0-9", "if-range": tag}).status == status


def test_a_client_that_has_the_file_gets_nothing_again(tmp_path: Path) -> None:
    answer = fetch(tmp_path, {"if-none-match": '"a", "tag"'})
    assert (answer.status, answer.content) == (304, b"")
