"""The line on which rank 0 tells the other ranks of its machine what to do: a socket to each of them.

Nothing else of a tick is waited for by so many, and an exchange of gloo goes through several threads on either side.
Ranks that do not find the line are on other machines: then there is none, and plans go as gloo has it.
"""

from __future__ import annotations

import shutil
import socket
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from omnimuse.core.errors import EngineDeadError

PREFIX = 8
"""Bytes at the head of a message that say how long it is."""
PIECE = 65536
"""Bytes that are read at once: most messages whole."""
PATH = 128
"""Bytes for the place where the line is found."""


class Line:
    """One end: on rank 0 a socket to each of the others, on these the one to rank 0."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = tuple(sockets)
        self._heard = bytearray()

    def tell(self, payload: bytes) -> None:
        """Send `payload` to every other rank. EngineDeadError if one is gone, or takes nothing for long."""
        message = len(payload).to_bytes(PREFIX, "little") + payload
        for other in self._sockets:
            try:
                other.sendall(message)
            except OSError as error:
                raise silent(error) from error

    def hear(self) -> bytes:
        """What rank 0 tells next. EngineDeadError if it is gone."""
        [leader] = self._sockets
        try:
            self._take(leader, PREFIX)
            length = PREFIX + int.from_bytes(self._heard[:PREFIX], "little")
            self._take(leader, length)
        except OSError as error:
            raise silent(error) from error
        message = bytes(self._heard[PREFIX:length])
        del self._heard[:length]
        return message

    def _take(self, leader: socket.socket, most: int) -> None:
        """Read until there are so many bytes, perhaps into what is told next."""
        while len(self._heard) < most:
            if not (found := leader.recv(PIECE)):
                raise ConnectionError("rank 0 has closed the line")
            self._heard += found

    def close(self) -> None:
        """Nothing is told any more."""
        for each in self._sockets:
            each.close()


def silent(error: Exception) -> EngineDeadError:
    """What ends an engine one of whose ranks is gone."""
    return EngineDeadError(f"the ranks can no longer talk ({error}); start the engine again")


def opened(rank: int, size: int, control: dist.ProcessGroup, wait: float) -> Line | None:
    """The line of all ranks of `control`; None, on every rank, where one of them is on another machine.

    Every rank calls this. A message that a rank does not take within `wait` seconds ends the engine.
    """
    return _listen(size, control, wait) if rank == 0 else _call(control)


def _listen(size: int, control: dist.ProcessGroup, wait: float) -> Line | None:
    folder = Path(tempfile.mkdtemp(prefix="omnimuse-line-"))
    others: list[socket.socket] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(folder / "line"))
            listener.listen(size)
            _at(control, str(folder / "line"))
            found = _found(control, here=True)
            listener.settimeout(wait)
            others = [listener.accept()[0] for _ in range(found - 1)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if found < size:
        for other in others:
            other.close()
        return None
    limit = struct.pack("ll", int(wait), 0)
    for other in others:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return Line(others)


def _call(control: dist.ProcessGroup) -> Line | None:
    leader = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected = False
    path = _at(control, "")
    with suppress(OSError):  # it is another machine's
        leader.connect(path)
        connected = True
    if _found(control, connected) < dist.get_world_size(control):
        leader.close()
        return None
    return Line([leader])


def _at(control: dist.ProcessGroup, path: str) -> str:
    """Rank 0's `path`, on every rank."""
    letter = torch.zeros(PATH, dtype=torch.uint8)
    letter[: len(path.encode())] = torch.tensor([*path.encode()], dtype=torch.uint8)
    dist.broadcast(letter, src=0, group=control)
    return bytes(letter.tolist()).rstrip(b"\0").decode()


def _found(control: dist.ProcessGroup, here: bool) -> int:
    """How many ranks have found the line."""
    count = torch.tensor([int(here)])
    dist.all_reduce(count, group=control)
    return int(count)
