"""The voices that clients left here: a short sound each, by name, of the key that sent it, kept over restarts.

For models that speak with the voice of a sound. What is kept are samples of our own making, never a client's file. A
voice that is removed is overwritten on the disk. The lock of the job store keeps a second server out.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Recording
from omnimuse.core.speech import SHORTEST
from omnimuse.server.database import Database, Tables, on_its_thread

MOST = 20
"""Voices of one key."""
LONGEST = 30.0
"""Seconds of a sound that is kept."""
MOST_BYTES = 8 * 2**20
"""Of its samples."""
NAME = re.compile(r"[^\W_](?:[\w .-]{0,62}[\w.-])?")
PREFIX = "voice_"
"""What ids begin with, and names do not."""

_COLUMNS = "id, name, consent, created, seconds, words"
_SCHEMA = """
CREATE TABLE voices (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, folded TEXT NOT NULL, consent TEXT NOT NULL,
    created REAL NOT NULL, seconds REAL NOT NULL, rate INTEGER NOT NULL, channels INTEGER NOT NULL, pcm BLOB NOT NULL,
    words TEXT,
    UNIQUE (tenant, folded)
);
"""
_WORDS = "ALTER TABLE voices ADD COLUMN words TEXT;"
TABLES = Tables("store of voices", 0x6F6D7576, 3, _SCHEMA, {1: "", 2: _WORDS}, unnamed=1)
"""The application_id is "omuv"."""
_CALLED = "tenant = ? AND (id = ? OR folded = ?)"


@dataclass(frozen=True)
class Voice:
    """What is told of one; `consent` is what its sender said of who agreed, `created` seconds since 1970, `words` what
    is said in the sound, if anybody knows.
    """

    id: str
    name: str
    consent: str
    created: float
    seconds: float
    words: str | None


class Voices:
    """Those in the database at `path`, made when missing; ConfigError for one that cannot be used.

    `taken` are names of the checkpoint's own. Close them.
    """

    def __init__(self, path: Path, taken: Collection[str] = ()) -> None:
        self._taken = frozenset(name.casefold() for name in taken)
        self.db = Database(path, TABLES)

    async def close(self) -> None:
        """Let go of the database. Closing twice is fine."""
        await self.db.close()

    @on_its_thread
    def listed(self, tenant: str) -> list[Voice]:
        """Those of this key, the oldest first."""
        asked = f"SELECT {_COLUMNS} FROM voices WHERE tenant = ? ORDER BY created, id"
        return [Voice(*row) for row in self.db.execute(asked, (tenant,))]

    @on_its_thread
    def add(self, tenant: str, name: str, consent: str, sound: Recording, words: str | None = None) -> Voice:
        """Keep `sound`, in which these `words` are said, as `name`; when this returns, it is on disk. RequestError says
        what cannot be.
        """
        self.check_name(name)
        check_sound(sound)
        made = Voice(f"{PREFIX}{secrets.token_hex(12)}", name, consent, time.time(), sound.seconds, words)
        row = (made.id, tenant, name, name.casefold(), consent, made.created, made.seconds)
        self._insert((*row, sound.rate, sound.channels, sound.pcm, words))
        return made

    @on_its_thread
    def remove(self, tenant: str, called: str) -> Voice | None:
        """Remove the one with this id or name, if this key has one; it is told."""
        asked = f"DELETE FROM voices WHERE {_CALLED} RETURNING {_COLUMNS}"
        rows = self.db.execute(asked, (tenant, called, called.casefold())).fetchall()
        self.db.forget()
        return Voice(*rows[0]) if rows else None

    @on_its_thread
    def sound(self, tenant: str, called: str) -> tuple[Recording, str | None] | None:
        """The sound of the one with this id or name, if this key has one, and what is said in it."""
        asked = f"SELECT words, rate, channels, pcm FROM voices WHERE {_CALLED}"
        rows = self.db.execute(asked, (tenant, called, called.casefold())).fetchall()
        for words, *sound in rows:
            return Recording(*sound), words
        return None

    def check_name(self, name: str) -> None:
        """RequestError for a name that a voice cannot have."""
        if NAME.fullmatch(name) is None or name.casefold().startswith(PREFIX):
            why = "use 1 to 64 letters, digits, spaces, dots, hyphens and underscores, and begin with a letter or digit"
            raise RequestError(f"name={name!r:.80} is no name for a voice: {why}, and not with {PREFIX}", "name")
        if name.casefold() in self._taken:
            raise RequestError(f"name={name!r} is a voice of the checkpoint; choose another", "name")

    def _insert(self, row: tuple[object, ...]) -> None:
        _, tenant, name, folded, *_ = row
        [count] = self.db.execute("SELECT count(*) FROM voices WHERE tenant = ?", (tenant,)).fetchone()
        if self.db.execute("SELECT 1 FROM voices WHERE tenant = ? AND folded = ?", (tenant, folded)).fetchone():
            raise RequestError(f"name={name!r} is taken by a voice that is kept; remove that first", "name")
        if count >= MOST:
            raise RequestError(f"{count} voices are kept, and no more are; remove one first", "name")
        self.db.execute(f"INSERT INTO voices VALUES ({', '.join('?' * len(row))})", row)


def check_sound(sound: Recording) -> None:
    """RequestError for a sound that is no sample of a voice."""
    if not SHORTEST <= sound.seconds <= LONGEST:
        why = f"lasts {sound.seconds:.3g} s; send one of {SHORTEST:g} to {LONGEST:g} s"
        raise RequestError(f"audio_sample {why}", "audio_sample")
    if len(sound.pcm) > MOST_BYTES:
        why = f"has {told_bytes(len(sound.pcm))} of samples, and {told_bytes(MOST_BYTES)} are kept"
        raise RequestError(f"audio_sample {why}; send one with fewer channels or a lower rate", "audio_sample")
