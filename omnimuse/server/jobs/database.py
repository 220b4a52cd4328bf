"""The tables of the job store, and the lock on a file beside it that keeps a second server out.

Only `server/jobs/store.py` uses them.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from omnimuse.core.errors import ConfigError
from omnimuse.server.database import Tables

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
{_SOURCES}
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
TABLES = Tables("job store", APPLICATION, VERSION, _SCHEMA, _SINCE)


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
