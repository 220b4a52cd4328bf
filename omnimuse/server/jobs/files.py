"""The server's folder of results: `spool` is where workers write, `files` is what clients may fetch later.

Both lie on one file system, so that a finished file moves by a rename: it is there whole or not at all. Routes `take`
what is answered at once and `keep` what a link leads to; jobs `keep` what they made until they expire. Every name is
the server's own choice; none comes from a client. Functions block on the disk: call them in a thread.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import ConfigError, StorageError
from omnimuse.deploy.wire import MadeFile
from omnimuse.media.destination import Sync, sync_path
from omnimuse.server.own_key import own_key

logger = logging.getLogger(__name__)

RESERVE = 256 * 2**20
"""Bytes of disk that stay free: with less, the server takes on nothing new."""

DERIVED = (".webp", ".jpeg")
"""Suffixes of what is made of a kept file when somebody asks, and kept beside it under the same id."""
_SPOOLED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\.[a-z0-9]{1,8}")
_KEPT = re.compile(r"(?:job-|[0-9a-f]{8})?[0-9a-f]{32}\.[a-z0-9]{1,8}")
_ID = re.compile(r"(?:job-|[0-9a-f]{8})?[0-9a-f]{32}")
_JOB = "job-"


def new_file_id() -> str:
    """A name for a kept file that nobody can guess: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def new_job_file_id() -> str:
    """As `new_file_id`, for the file of a job: it lives as long as the job, and a start removes it without one."""
    return _JOB + secrets.token_hex(16)


class Files:
    """The folders `spool` and `files` in `data`, readable by this user only; `reserve` is in bytes.

    `key` is the server's own. `sync` puts onto the disk what an open file or folder holds.
    """

    def __init__(self, data: Path, reserve: int = RESERVE, sync: Sync = os.fsync) -> None:
        self.spool = data / "spool"
        self._kept = data / "files"
        self._reserve = reserve
        self._sync = sync
        self._roomy = True
        for folder in (data, self.spool, self._kept):
            _make_private(folder, sync)
        self.key = own_key(data, sync)

    def take(self, made: MadeFile) -> BinaryIO:
        """A file of the spool, opened and removed from it; StorageError if it is not what was made."""
        path = self._spooled(made)
        file = path.open("rb")
        try:
            path.unlink()
            if (size := os.fstat(file.fileno()).st_size) != made.bytes:
                raise StorageError(f"a result has {size} bytes on disk and {made.bytes} were made")
        except BaseException:
            file.close()
            raise
        return file

    def keep(self, made: MadeFile, file_id: str) -> str:
        """Move a file from the spool to where clients fetch it; returns its name there, `<file_id>.<suffix>`.

        When this returns, the file survives a power loss. StorageError if it is not what was made.
        """
        if not _ID.fullmatch(file_id):
            raise ValueError(f"{file_id!r} is no file id; make one with new_file_id()")
        source = self._spooled(made)
        if source.stat().st_size != made.bytes:
            raise StorageError(f"a result has {source.stat().st_size} bytes on disk and {made.bytes} were made")
        name = file_id + source.suffix
        source.rename(self._kept / name)
        sync_path(self._kept, self._sync)
        return name

    def new_link_id(self, tenant: str) -> str:
        """As `new_file_id`, by which what links of `tenant` lead to can be counted."""
        return self._of(tenant) + new_file_id()

    def linked(self, tenant: str) -> int:
        """The bytes that are kept behind links of `tenant`."""
        return sum(size for name, _, size in self._loose() if name.name.startswith(self._of(tenant)))

    def _of(self, tenant: str) -> str:
        """What ids of one tenant begin with, by whichever server; it tells nobody which tenant that is."""
        return blake2b(tenant.encode(), key=self.key, digest_size=4).hexdigest()

    def path(self, name: str) -> Path:
        """Where the kept file `name` is; it may be gone. ValueError for anything that is no such name."""
        if not _KEPT.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a kept file")
        return self._kept / name

    def remove(self, name: str) -> None:
        """Remove a kept file, and what was made of it since; it is fine when it is gone already."""
        path = self.path(name)
        for suffix in (path.suffix, *DERIVED):  # in this order: who makes a still looks last whether there is a video
            path.with_suffix(suffix).unlink(missing_ok=True)

    def discard(self, made: MadeFile) -> None:
        """Remove a file from the spool; it is fine when it is gone already."""
        self._spooled(made).unlink(missing_ok=True)

    def empty_spool(self) -> None:
        """Remove what a dead server or its workers left unfinished. Only while no worker runs."""
        for path in self.spool.iterdir():
            path.unlink(missing_ok=True)

    def sweep(self, named: Collection[str]) -> int:
        """Remove files of jobs whose names are not in `named`; returns how many. Only while no job ends.

        What was made of them goes, too: it is made again when it is asked for.
        """
        orphans = [path for path in self._kept.glob(f"{_JOB}*") if path.name not in named]
        for path in orphans:
            path.unlink(missing_ok=True)
        return len(orphans)

    def expire(self, older: float) -> int:
        """Remove files that belong to no job and were made more than `older` seconds ago; returns how many."""
        latest = time.time() - older
        old = [path for path, made, _ in self._loose() if made <= latest]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _loose(self) -> Iterator[tuple[Path, float, int]]:
        """Kept files that belong to no job, when they were made, and their bytes; those that vanish are passed over."""
        for path in self._kept.iterdir():
            if not path.name.startswith(_JOB):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    yield path, found.st_mtime, found.st_size

    def storage_ok(self) -> bool:
        """Whether the disk is there and has room for more results; the log is told when that changes."""
        try:
            free = shutil.disk_usage(self.spool).free
        except OSError:
            free = -1
        if (roomy := free >= self._reserve) is not self._roomy:
            self._roomy = roomy
            state = "has room again" if roomy else "is nearly full, or gone: nothing new is taken on until it has room"
            room = told_bytes(max(free, 0)), told_bytes(self._reserve)
            logger.warning("the disk of %s %s (%s are free, %s stay so)", self.spool, state, *room)
        return roomy

    def _spooled(self, made: MadeFile) -> Path:
        if not _SPOOLED.fullmatch(made.name):
            raise StorageError(f"a worker named a result {made.name!r}, which is no bare file name")
        return self.spool / made.name


def _make_private(folder: Path, sync: Sync) -> None:
    """Make a folder that only this user can read. One that is there keeps its mode, which is somebody's choice."""
    missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for made in missing:
            sync_path(made.absolute().parent, sync)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("it cannot be written")
    except OSError as error:
        raise ConfigError(
            f"cannot use {folder} for jobs and results: {error.strerror or error}; choose another --data folder"
        ) from None
