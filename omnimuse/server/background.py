"""Work that goes on beside the requests: one turn after the other, watched, and never ended in silence.

`server/jobs/book.py` starts its jobs and tidies up in this way. A turn that fails is logged, counted and tried again
after a pause; when it keeps failing, the server says that it is not ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

logger = logging.getLogger(__name__)

PATIENCE, LONGEST = 1.0, 10.0
"""Seconds before a turn that failed is tried again, doubled for each further failure up to the longest."""
TOO_OFTEN = 3
"""Failures without a success between them after which this is trouble."""


class Background:
    """Takes turns until stopped; `turn` returns the seconds until the next one, unless `wake` comes first."""

    def __init__(self, name: str, turn: Callable[[], Awaitable[float]], failed: Callable[[str], None]) -> None:
        """`failed` is told the name whenever a turn fails."""
        self._name, self._turn, self._failed = name, turn, failed
        self._wake = asyncio.Event()
        self._failures = 0
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str:
        """What to say where it keeps failing; empty while it does not."""
        return f"{self._name} fails again and again" if self._failures >= TOO_OFTEN else ""

    def start(self) -> None:
        """Begin on this event loop."""
        self._task = asyncio.create_task(self._go_on())

    def wake(self) -> None:
        """Let the next turn begin at once; during a turn, right after it."""
        self._wake.set()

    async def stop(self) -> None:
        """Return when the turn under way has ended and no other will begin."""
        self._stopped = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _go_on(self) -> None:
        while not self._stopped:
            self._wake.clear()
            pause = await self._take_turn()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)

    async def _take_turn(self) -> float:
        """Seconds until the next turn, whatever becomes of this one."""
        turn = asyncio.ensure_future(self._turn())
        try:
            await asyncio.wait({turn})
        finally:
            turn.cancel()
        error = None if turn.cancelled() else turn.exception()
        if error is None and not turn.cancelled():
            self._failures = 0
            return turn.result()
        self._failures += 1
        pause = min(LONGEST, PATIENCE * 2 ** (self._failures - 1))
        logger.error("%s failed and is tried again in %g s", self._name, pause, exc_info=error)
        self._failed(self._name)
        return pause
