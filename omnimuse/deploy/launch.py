"""Where the ranks of a worker run: a `Launcher` starts each, and whoever asked waits for it or kills it.

Rank 0 is always on the front's own machine, with its socket and the files it makes. The other ranks of its group are
started here, too (`Local`), by agents on other machines (`deploy/agents.py`) or as actors of Ray
(`deploy/ray_actors.py`). No torch.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from omnimuse.core.environment import Environment
from omnimuse.deploy.child import Settings, write_settings
from omnimuse.deploy.ranks import how


class Started(Protocol):
    """A rank that was started."""

    @property
    def pid(self) -> int | None:
        """Its process; None where that is on another machine."""
        ...

    async def wait(self) -> str:
        """Return when it has ended: how, such as `ended with status 1`."""
        ...

    def kill(self) -> None:
        """End it now; nothing where it has ended."""
        ...


class Launcher(Protocol):
    """Starts ranks somewhere. `meeting` is the host by whose name they find rank 0; empty on the front's machine."""

    @property
    def meeting(self) -> str:
        """The front's machine, as ranks elsewhere reach it."""
        ...

    async def start(self, settings: Settings) -> Started:
        """Start the rank that `settings` say; OSError if there is no place for it."""
        ...

    async def close(self) -> None:
        """Nothing is started any more; all ranks have been waited for."""
        ...


class Child:
    """A rank in a child process of this one."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self._process.pid

    async def wait(self) -> str:
        """How it ended."""
        return how(await self._process.wait())

    def kill(self) -> None:
        """Kill it, and what it has started."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Local:
    """Starts ranks as child processes; `command` is what they run."""

    meeting = ""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    async def start(self, settings: Settings) -> Started:
        """A child process that is told `settings`."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=2,
            env=Environment.for_workers(),
            process_group=0,
        )
        assert process.stdin is not None
        with suppress(ConnectionError):  # its end is noticed elsewhere
            process.stdin.write(write_settings(settings))
            await process.stdin.drain()
        return Child(process)

    async def close(self) -> None:
        """Nothing is left to do."""


def free_port(host: str) -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
