"""The life of a process that a front starts, whatever it serves: its settings, its log, from first line to last.

Its settings come on its standard input, which stays open: its end means that the parent is gone, and then the process
is gone, too. The main thread only talks (`line.py`); whatever thread dies takes the process with it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from omnimuse.core.config import Config
from omnimuse.deploy.line import Line
from omnimuse.deploy.ranks import die_with_parent, watch_parent
from omnimuse.deploy.wire import Beat, Command, Told
from omnimuse.worker.warm_up import SMALL


class EdgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a process of a pool finds the front of its group (`deploy/connectors.py`), and as who it comes."""

    kind: str
    address: str
    key: str
    name: str


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the parent says first, as one line of JSON.

    `name` tells this life apart from all others; `first` is the first life of the first replica. `meeting` is
    where the ranks of a group find each other, `seat` one of those of its machine (`Rank`). `period` is seconds between
    beats. Where rank 0 is not on the front's machine, there is the `key` of the front's socket, and files go that way.
    A process of a pool has an `edge`.
    """

    config: Config
    address: str
    spool: Path
    name: str
    seat: int = 0
    seats: int = 1
    rank: int = 0
    ranks: int = 1
    meeting: str = ""
    faults: str = ""
    first: bool = True
    period: float = 0.5
    warm_up: str = SMALL
    key: str = ""
    edge: EdgeSettings | None = None


def write_settings(settings: Settings) -> bytes:
    """`settings` as one line of JSON."""
    return msgspec.json.encode(settings, enc_hook=str) + b"\n"


def read_settings(line: bytes) -> Settings:
    """What `write_settings` was given."""
    return msgspec.json.decode(line, type=Settings, dec_hook=lambda kind, value: kind(value))


class Tell(logging.Handler):
    """Sends what is logged in this process to the log of the front process."""

    def __init__(self, line: Line) -> None:
        super().__init__(logging.INFO)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        self._line.send(Told("warning" if record.levelno >= logging.WARNING else "info", record.getMessage()))


class Serving(Protocol):
    """What a process does: `load` on a thread of its own, the rest between it and whoever started it."""

    failed: bool

    def load(self) -> None: ...

    def on_thread_death(self, died: threading.ExceptHookArgs) -> None: ...

    def obey(self, command: Command) -> None: ...

    def beat(self) -> Beat: ...

    def close(self) -> None: ...


def talk(settings: Settings, make: Callable[[Settings, Line], Serving]) -> int:
    """Have what `make` makes serve until the end; the exit status."""
    line = Line(settings.address, settings.key)
    ours = logging.getLogger("omnimuse")
    ours.setLevel(logging.INFO)
    ours.addHandler(Tell(line))
    serving = make(settings, line)
    threading.excepthook = serving.on_thread_death
    threading.Thread(target=serving.load, name="omnimuse-load", daemon=True).start()
    line.talk(serving.obey, serving.beat, settings.period)
    if not serving.failed:
        serving.close()
    line.close()
    return int(serving.failed)


def run(serve: Callable[[Settings], int]) -> None:
    """Be a process that does what `serve` does with its settings, until that ends or its parent dies.

    Signals that stop a server are the parent's affair.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()
    settings = read_settings(sys.stdin.buffer.readline())
    threading.Thread(target=watch_parent, name="omnimuse-parent", daemon=True).start()
    status = serve(settings)
    sys.stderr.flush()
    os._exit(status)  # threads in the midst of something have nothing that must be kept
