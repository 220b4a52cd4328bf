"""Waiting for something to become true, but not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 90.0  # seconds: this machine may be busy


async def until(met: Callable[[], object]) -> None:
    """Let others work until it is."""
    async with asyncio.timeout(PATIENCE):
        while not met():
            await asyncio.sleep(0.005)


def wait_until(met: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Sleep until it is."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
