"""The SQLite database of the job store: its tables, its lock, and what is said when it cannot be used.

Only `server/jobs/store.py` uses it. A database that is damaged, foreign or of another version is refused with what to
do about it; nothing is ever reset. A lock on a file beside it keeps a second server out.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from omnimuse.core.errors import ConfigError, reason

VERSION = 3
"""Of the tables below; written into the database as its user_version. An older database is brought up to it."""
APPLICATION = 0x6F6D756A
"""The database's application_id: "omuj"."""

# What a job starts from (pictures, sounds) stands apart: who asks about a job reads none of it. It goes with its end.
_SOURCES = """
CREATE TABLE sources (job TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TRIGGER sources_of_ended AFTER UPDATE OF state ON jobs WHEN NEW.state IN ('completed', 'failed')
BEGIN DELETE FROM sources WHERE job = NEW.id; END;
CREATE TRIGGER sources_of_deleted AFTER DELETE ON jobs BEGIN DELETE FROM sources WHERE job = OLD.id; END;
"""

_SCHEMA = f"""
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'in_progress', 'completed', 'failed')),
    attempt INTEGER NOT NULL,
    progress INTEGER NOT NULL DEFAULT 0,
    work TEXT NOT NULL,
    files TEXT NOT NULL DEFAULT '[]',
    timings TEXT NOT NULL DEFAULT '{{}}',
    memory INTEGER NOT NULL DEFAULT 0,
    remarks TEXT NOT NULL DEFAULT '{{}}',
    error TEXT,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    expires REAL,
    deadline REAL,
    idem_key TEXT,
    idem_hash TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, tenant);
CREATE UNIQUE INDEX jobs_by_key ON jobs (tenant, idem_key) WHERE idem_key IS NOT NULL;
PRAGMA application_id = {APPLICATION};
{_SOURCES}
PRAGMA user_version = {VERSION};
"""

_SINCE = {
    1: f"""{_SOURCES}
INSERT INTO sources SELECT id, json_object(
  'images', json(coalesce(json_extract(work, '$.request.images'), '[]')),
  'sounds', json(coalesce(json_extract(work, '$.request.sounds'), '[]'))
 ) FROM jobs WHERE json_array_length(work, '$.request.images') > 0 OR json_array_length(work, '$.request.sounds') > 0;
UPDATE jobs SET work = json_replace(work, '$.request.images', json('[]'), '$.request.sounds', json('[]'));
""",
    2: "ALTER TABLE jobs ADD COLUMN remarks TEXT NOT NULL DEFAULT '{}';",
}
"""What makes the tables of a version those of the next."""


def take_lock(path: Path) -> int:
    """A handle that holds the lock until it is closed, or its process ends in whatever way."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(
            f"another server uses the folder {path.parent}; stop it, or choose another --data folder"
        ) from None
    return handle


def connect(path: Path) -> sqlite3.Connection:
    """A sound database of this version; ConfigError says what to do about any other. Nothing is reset."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it readable by others
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cannot open the job store {path}: {reason(error)}; choose another --data folder") from None
    db.row_factory = sqlite3.Row
    try:
        _prepare(db, path)
    except sqlite3.DatabaseError as error:
        db.close()
        raise ConfigError(
            f"the job store {path} is damaged ({error}). Its jobs are not thrown away: keep a copy, try "
            f"`sqlite3 {path} .recover | sqlite3 repaired.sqlite`, put the repaired file in its place, or start with "
            "another --data folder"
        ) from None
    except ConfigError:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA busy_timeout = 5000")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")  # the prompt of a deleted job is overwritten
    with closing(db.execute("PRAGMA quick_check(1)")) as found:
        if (word := found.fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(word)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    if version == 0 and application == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif application != APPLICATION:
        raise ConfigError(f"{path} is not a job store of omnimuse; move it away or choose another --data folder")
    elif version in _SINCE:
        steps = "".join(_SINCE[older] for older in range(version, VERSION))
        db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version != VERSION:
        raise ConfigError(
            f"the job store {path} has version {version} and this omnimuse knows version {VERSION}; "
            "update omnimuse, or choose another --data folder"
        )
