"""A SQLite database that one thread owns: made, checked and brought up to date when it is opened.

The job store and the voices are such. A database that is damaged, foreign or of another version is refused with what to
do about it; nothing is ever reset. What was deleted is overwritten. Methods of whoever has one are put on its thread by
`on_its_thread`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple

from omnimuse.core.errors import ConfigError, StorageError, reason

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Whose = TypeVar("Whose", bound="Owner")


@dataclass(frozen=True)
class Tables:
    """What is in a database: `what` says whose, as in "job store"; `schema` makes its tables.

    Its user_version is `version`, and `since` has what makes the tables of a version those of the next. Its
    application_id is `application`, which those up to version `unnamed` did not have.
    """

    what: str
    application: int
    version: int
    schema: str
    since: Mapping[int, str]
    unnamed: int = 0

    def marks(self) -> str:
        """The statements that write both numbers."""
        return f"PRAGMA application_id = {self.application}; PRAGMA user_version = {self.version};"


class Database:
    """The one at `path`, made when missing; ConfigError says what to do about one that cannot be used."""

    def __init__(self, path: Path, tables: Tables) -> None:
        self._what = tables.what
        self._db = _connect(path, tables)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"omnimuse {tables.what}")
        self.execute = self._db.execute  # for what runs on the thread

    async def close(self) -> None:
        """End the thread and let go of the file. Closing twice is fine."""
        await asyncio.to_thread(self._thread.shutdown)
        self._db.close()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` gives, on the thread; StorageError when the disk refuses."""

        def guarded() -> T:
            try:
                return work()
            except sqlite3.DatabaseError as error:
                raise StorageError(f"the {self._what} refuses: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed meanwhile is written, or nothing of it."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self.execute("ROLLBACK")
            raise

    def forget(self) -> None:
        """Empty the write-ahead log: what was deleted is in the database no more, but still in there."""
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


class Owner(Protocol):
    """Whoever has a database."""

    db: Database


def on_its_thread(method: Callable[[Whose, *Ts], T]) -> Callable[[Whose, *Ts], Awaitable[T]]:
    """`method`, run on the thread of its owner's database."""

    @wraps(method)
    async def call(self: Whose, *args: *Ts) -> T:
        return await self.db.run(lambda: method(self, *args))

    return call


def _connect(path: Path, tables: Tables) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it readable by others
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        why = f"cannot open the {tables.what} {path}: {reason(error)}"
        raise ConfigError(f"{why}; choose another --data folder") from None
    db.row_factory = sqlite3.Row
    try:
        _prepare(db, path, tables)
    except sqlite3.DatabaseError as error:
        db.close()
        raise ConfigError(
            f"the {tables.what} {path} is damaged ({error}). What it holds is not thrown away: keep a copy, try "
            f"`sqlite3 {path} .recover | sqlite3 repaired.sqlite`, put the repaired file in its place, or start with "
            "another --data folder"
        ) from None
    except ConfigError:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path, tables: Tables) -> None:
    db.execute("PRAGMA busy_timeout = 5000")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
    with closing(db.execute("PRAGMA quick_check(1)")) as found:
        if (word := found.fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(word)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    named = application == tables.application or (application == 0 and 0 < version <= tables.unnamed)
    if version == 0 and application == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        db.executescript(f"BEGIN IMMEDIATE; {tables.schema} {tables.marks()} COMMIT;")
    elif not named:
        raise ConfigError(f"{path} is not a {tables.what} of omnimuse; move it away or choose another --data folder")
    elif version in tables.since:
        steps = "".join(tables.since[older] for older in range(version, tables.version))
        db.executescript(f"BEGIN IMMEDIATE; {steps} {tables.marks()} COMMIT;")
    elif version != tables.version:
        raise ConfigError(
            f"the {tables.what} {path} has version {version} and this omnimuse knows version {tables.version}; "
            "update omnimuse, or choose another --data folder"
        )
