"""Files of a worker on another machine: they come through its socket in pieces, and appear whole in the front's spool.

`deploy/process.py` sends what it has made, `deploy/replica.py` lays it down. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from omnimuse.core.errors import StorageError
from omnimuse.deploy.wire import Carried, Ended, Profiled

PIECE = 4 * 2**20
"""Bytes of a file that ride in one message."""


def carry(path: Path, request_id: str, send: Callable[[Carried], None]) -> None:
    """Send the file at `path`, which is not needed here any more."""
    whole = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start < whole or not start:
            data = file.read(PIECE)
            send(Carried(request_id, path.name, start, whole, data))
            start += len(data) or 1
    path.unlink()


def lay(folder: Path, piece: Carried) -> Ended | Profiled | None:
    """Write `piece` in `folder`, where its file appears with the last one; where that cannot be, what to tell of it."""
    try:
        _write(folder, piece)
    except OSError as error:
        why = f"the result could not be written: {error.strerror or error}; free some space"
        return Ended(piece.request_id, StorageError.__name__, why) if piece.request_id else Profiled("", why)
    return None


def _write(folder: Path, piece: Carried) -> None:
    if Path(piece.name).name != piece.name:
        raise OSError(f"{piece.name!r} is no name of a file in the spool")
    part = folder / f".{piece.name}.part"
    with part.open("ab" if piece.start else "wb") as file:
        if file.tell() != piece.start:
            raise OSError(f"{piece.name} goes on at byte {piece.start}, and {file.tell()} are here")
        file.write(piece.data)
        if file.tell() < piece.whole:
            return
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / piece.name)
