"""How long the event loop was kept from its other work: a task that wants to run every millisecond, and notes gaps.

Gaps are in seconds of computation of this process, on all of its threads: what other processes of a busy machine take
is nobody's fault here.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self


class LoopWatch:
    """Measures while it is entered; `longest` is the longest pause in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        await asyncio.sleep(0.01)
        self.longest = 0.0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.sleep(0.005)
        assert self._task is not None
        self._task.cancel()

    async def _look(self) -> None:
        before = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            self.longest = max(self.longest, now - before)
            before = now
