"""Databases of the server: what cannot be used is refused and left alone, and what is older is taken over."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError, StorageError
from omnimuse.core.request import Recording
from omnimuse.server import voices
from omnimuse.server.database import Database, Tables
from omnimuse.server.jobs import database as jobs
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.voices import Voices
from tests.server.jobs.test_store import damage, scramble, truncate

SOUND = Recording(24_000, 1, b"\x12\x34" * 24_000)


def keep(path: Path) -> None:
    """A voice in the database at `path`."""

    async def act() -> None:
        opened = Voices(path)
        await opened.add("ada", "narrator", "she says so", SOUND)
        await opened.close()

    asyncio.run(act())


@pytest.mark.parametrize(
    ("harm", "said"),
    [(damage, "damaged"), (truncate, "damaged"), (scramble, "damaged"), (None, "is not a store of voices")],
)
def test_voices_that_cannot_be_read_are_refused_with_a_hint_and_left_alone(
    harm: Callable[[Path], None] | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "voices.sqlite"
    if harm is None:
        asyncio.run(asyncio.run(JobStore.open(path)).close())
    else:
        keep(path)
        harm(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said) as caught:
        Voices(path)
    assert "--data" in str(caught.value) and path.read_bytes() == before


@pytest.mark.parametrize("tables", [jobs.TABLES, voices.TABLES])
def test_a_database_of_a_newer_version_is_refused(tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    asyncio.run(Database(path, tables).close())
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {tables.version + 1}")
    db.close()
    with pytest.raises(ConfigError, match=rf"{tables.what} .* knows version {tables.version}; update omnimuse"):
        Database(path, tables)


@pytest.mark.parametrize(
    "older",
    [
        "PRAGMA user_version = 1; PRAGMA application_id = 0;",
        "PRAGMA user_version = 2;",
    ],
)
def test_voices_of_earlier_versions_are_taken_over(older: str, tmp_path: Path) -> None:
    path = tmp_path / "voices.sqlite"
    keep(path)
    with sqlite3.connect(path) as db:
        db.executescript(f"PRAGMA journal_mode = DELETE; ALTER TABLE voices DROP COLUMN words; {older}")
    db.close()

    async def act() -> None:
        opened = Voices(path)
        assert await opened.sound("ada", "Narrator") == (SOUND, None)
        await opened.add("ada", "other", "she says so", SOUND, "one two")
        assert await opened.sound("ada", "other") == (SOUND, "one two")
        await opened.close()

    asyncio.run(act())
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA application_id").fetchone()[0] == voices.TABLES.application
    db.close()


def test_a_voice_that_is_removed_is_in_no_file_although_the_server_goes_on(tmp_path: Path) -> None:
    async def act() -> None:
        opened = Voices(tmp_path / "voices.sqlite")
        await opened.add("ada", "narrator", "she says so", SOUND)
        assert await opened.remove("ada", "narrator") is not None
        for path in tmp_path.iterdir():
            assert SOUND.pcm[:512] not in path.read_bytes() and path.stat().st_mode & 0o077 == 0
        await opened.close()

    asyncio.run(act())


def test_a_disk_that_refuses_is_said_of_the_voices(tmp_path: Path) -> None:
    async def act() -> None:
        opened = Voices(tmp_path / "voices.sqlite")
        pages = opened.db.execute("PRAGMA page_count").fetchone()[0]
        opened.db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match=r"the store of voices refuses: .*full"):
            await opened.add("ada", "narrator", "she says so", SOUND)
        await opened.close()

    asyncio.run(act())
