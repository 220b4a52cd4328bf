"""Which processes run, and which have ended. None of it minds a process or a thread that ends while it is asked."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil


def children(pid: int, program: str = "") -> list[int]:
    """The processes that this one started and that still run, in order; with `program` in their command."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                if program in " ".join(child.cmdline()) and alive(child.pid):
                    found.append(child.pid)
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False


def has_torch(pid: int) -> bool:
    """Whether a process has torch in memory."""
    try:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def kill(pid: int) -> None:
    """Kill a process, if it has not ended by itself."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_gone(pids: list[int], within: float = 10.0) -> bool:
    """Whether all of `pids` have ended in time."""
    end = time.monotonic() + within
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
