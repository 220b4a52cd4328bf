"""Work on what strangers sent, done in processes that may die of it.

The server's front process asks `Sandbox`, which starts `python -m omnimuse.media.decoder` for each file: a child with
little memory and time, no environment, and, once it has its libraries, nothing but its one channel (`confine.py`). A
question is the name of a work from a closed list, limits and bytes; an answer is bytes or one word. Both say their
length, so nothing waits for an end, and every wait has a bound: a child can hold the channel open for ever, or hand it
on, and is gone all the same. What an answer is worth is for the asker to judge. Nothing here imports Pillow.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from omnimuse.core.errors import CapacityError
from omnimuse.media.channel import Channel
from omnimuse.media.turns import Turns

Work = Literal["picture", "mask", "sound", "clip", "track"]
"""What a child can be asked to do. A work is a function in `decoder.py`."""

Trouble = Literal["large", "slow", "dead"]
"""Why there is no answer: the file is larger than the limits, took too long, or ended its child."""

COMMAND = (sys.executable, "-P", "-m", "omnimuse.media.decoder")
CLIPS = (*COMMAND, "clip")
"""Children that read videos: they need a library, more memory and more time, which others do without."""
ENVIRONMENT: Mapping[str, str] = {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "OPENBLAS_NUM_THREADS": "1",
    "LC_ALL": "C.UTF-8",
}
"""All that a child knows of the environment: no secrets, and one thread."""

WAITING = 64  # files that wait for their turn; more are refused
STARTING = 60.0  # seconds until a child has loaded its libraries; a busy machine takes long
_END = 5.0  # seconds that a killed child gets to be gone; it then is looked after later
_LOOK = 0.005  # seconds between looks at whether it is


class SandboxError(Exception):
    """There is no answer to a question; `trouble` says why."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble)
        self.trouble = trouble


@dataclass(frozen=True)
class Question:
    """`work` on `content` within `limits`, which the work understands; an answer has at most `most` bytes."""

    work: Work
    content: bytes
    limits: Mapping[str, int]
    most: int


class Sandbox:
    """Asks children, `together` at once, each for at most `seconds`. Lives on one event loop; close it.

    After the first question one child is kept ready for the next: a child sees one file and ends.
    """

    def __init__(
        self, together: int = 2, seconds: float = 20.0, command: tuple[str, ...] = COMMAND, waiting: int = WAITING
    ) -> None:
        self._seconds, self._command = seconds, command
        self._turns = Turns(together, waiting)
        self._spare: _Child | None = None
        self._closed = False

    async def ask(self, question: Question, tenant: str = "") -> bytes:
        """The answer; SandboxError if there is none. Tenants take turns. Cancelling ends the child.

        CapacityError when too many wait, or no child can be started.
        """
        async with self._turns.one(tenant):
            try:
                answer = await self._answer(question)
            except SandboxError:
                await self._prepare()
                raise
            await self._prepare()
            return answer

    async def lacking(self) -> Mapping[str, str]:
        """What of its confinement this system does not offer a child -> why. Starts one to see.

        CapacityError when none can be started.
        """
        child = self._start()
        try:
            return await _ready(child)
        finally:
            await child.end()

    async def close(self) -> None:
        """End the child that is kept ready; none is kept afterwards."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.end()

    async def _answer(self, question: Question) -> bytes:
        child, self._spare = self._spare, None
        if child is not None and not child.alive:
            await child.end()
            child = None
        child = child or self._start()
        try:
            await _ready(child)
            return await child.ask(question, self._seconds)
        finally:
            await child.end()

    async def _prepare(self) -> None:
        """Keep a child ready. Where none can be started now, the next question finds that out for itself."""
        if self._keeps_one():
            with suppress(CapacityError):
                child = self._start()
                self._spare, superfluous = (child, None) if self._keeps_one() else (self._spare, child)
                if superfluous is not None:  # another was quicker, or the sandbox was closed
                    await superfluous.end()

    def _keeps_one(self) -> bool:
        return self._spare is None and not self._closed

    def _start(self) -> _Child:
        try:
            return _Child.start(self._command)
        except OSError:
            raise CapacityError("the server cannot start another process now; try again later", 5.0) from None


async def _ready(child: _Child) -> Mapping[str, str]:
    try:
        return await child.ready(STARTING)
    except SandboxError:
        message = "the process that reads files does not start; try again later, and see `omnimuse doctor`"
        raise CapacityError(message, 5.0) from None


class _Child:
    """One process and the channel to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self._process, self._channel = process, channel
        self._lacking: Mapping[str, str] | None = None

    @classmethod
    def start(cls, command: tuple[str, ...]) -> Self:
        """A child that begins; OSError if the system has no room for it."""
        ours, theirs = socket.socketpair()
        try:  # nothing is waited for while nobody could end it
            with theirs:
                process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, env=ENVIRONMENT,
                    cwd="/", start_new_session=True,
                )  # fmt: skip
        except OSError:
            ours.close()
            raise
        return cls(process, Channel(ours))

    @property
    def alive(self) -> bool:
        """Whether it still runs. Ask before it is given anything: whoever is found dead is reaped at once."""
        return self._process.poll() is None

    async def ready(self, seconds: float) -> Mapping[str, str]:
        """Wait until it is; what it lacks. SandboxError if it takes longer than `seconds`, or ends."""
        if self._lacking is None:
            try:
                async with asyncio.timeout(seconds):
                    said = await self._line()
            except TimeoutError:
                raise SandboxError("slow") from None
            lacking = said.get("lacking") if said else None
            if not isinstance(lacking, dict):
                raise SandboxError("dead")
            self._lacking = {str(name): str(why) for name, why in lacking.items()}
        return self._lacking

    async def ask(self, question: Question, seconds: float) -> bytes:
        """What it answers within `seconds`."""
        giving = asyncio.create_task(self._give(question))
        try:
            async with asyncio.timeout(seconds):
                answer = await self._take(question.most)
        except TimeoutError:
            raise SandboxError("slow") from None
        finally:
            giving.cancel()
            await asyncio.gather(giving, return_exceptions=True)
        if answer is None:
            await self.end()
            raise SandboxError("slow" if self._process.returncode == -signal.SIGXCPU else "dead")
        return answer

    async def end(self) -> None:
        """Kill it, with all that it started, and close the channel. Never waits for longer than a few seconds."""
        if self._process.returncode is None:  # not reaped, so that the number of its group is still its own
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._channel.close()
        end = time.monotonic() + _END
        try:
            while self._process.poll() is None and time.monotonic() < end:
                await asyncio.sleep(_LOOK)
        finally:
            if self._process.returncode is None:
                threading.Thread(target=self._process.wait, daemon=True).start()

    async def _give(self, question: Question) -> None:
        head = {"work": question.work, "limits": dict(question.limits), "length": len(question.content)}
        await self._channel.write(json.dumps(head).encode() + b"\n")
        await self._channel.write(question.content)

    async def _take(self, most: int) -> bytes | None:
        """The answer, of at most `most` bytes; None if the child says nothing, or anything else."""
        head = await self._line()
        if head is None:
            return None
        if head.get("refused") == "large":
            raise SandboxError("large")
        length = head.get("length")
        if type(length) is not int or not 0 <= length <= most:
            return None
        return await self._channel.exactly(length)

    async def _line(self) -> dict[str, Any] | None:
        """A line of JSON; None for anything else."""
        try:
            said = json.loads(await self._channel.line())
        except (ValueError, RecursionError):  # too long, nothing, not JSON
            return None
        return said if isinstance(said, dict) else None
