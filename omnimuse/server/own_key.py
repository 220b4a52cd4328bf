"""The server's own key, in the file `links.key` of its data folder: what is derived of it is the same after a restart.

`server/jobs/files.py` reads it once. Links are signed with it (`routes/files.py`), and what they lead to is counted by
it.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from omnimuse.core.errors import ConfigError
from omnimuse.media.destination import Sync, sync_path, write_whole

KEY_BYTES = 32
_NAME = "links.key"


def own_key(data: Path, sync: Sync = os.fsync) -> bytes:
    """The key in the folder `data`, made at first use; readable by this user only.

    It is on the disk when this returns, however often the power went meanwhile: nothing that is given out outlives it.
    ConfigError where it cannot be read or made.
    """
    path = data / _NAME
    try:
        if not os.path.lexists(path):
            with suppress(FileExistsError):  # a second server came first; the lock of the job store sends it away
                write_whole(path, secrets.token_bytes(KEY_BYTES), replace=False, mode=0o600, sync=sync)
        sync_path(data, sync)  # whoever made the file may have come no further
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the server's own key {path} cannot be read or made: {error.strerror or error}; mend the folder, or "
            "choose another --data folder"
        ) from None
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path} is damaged; remove it and start again (links given out before become invalid)")
    return key
