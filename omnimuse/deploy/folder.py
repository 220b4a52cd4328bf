"""A private folder for sockets that outlives nobody: removed when closed, or by the next server if this one was killed.

`deploy/pool.py` has one. A lock on a file in it, which the system lets go when its holder dies, tells folders in use
from those left behind. No torch.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from omnimuse.core.errors import ConfigError

PREFIX, LOCK = "omnimuse-", "lock"
LONGEST = 80  # bytes: the path of a socket may have little more than a hundred
FRESH = 60.0  # seconds in which a folder may be without its lock


class PrivateFolder:
    """`path` is a new folder that only this user may enter, in the folder for temporary files."""

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        if len(os.fsencode(self.path)) > LONGEST:
            self.path.rmdir()
            raise ConfigError(f"{self.path.parent} is too long a path for sockets; set TMPDIR to a shorter folder")
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep() -> None:
    """Remove this user's folders whose server is dead."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            status = path.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < FRESH:
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # no folder of ours, or gone meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:  # in use
            continue
        finally:
            os.close(lock)
