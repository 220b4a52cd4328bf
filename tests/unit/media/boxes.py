"""Sandboxes for tests, and children of theirs that misbehave: none of those is confined."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from omnimuse.media.sandbox import Sandbox
from tests.processes import children

READY = "import os, sys, time; os.write(1, b'{\"lacking\": {}}\\n'); "
"""What a child says before it is asked."""
HANGS = "time.sleep(60)"


def speaking(script: str) -> tuple[str, ...]:
    """The command of a child that says it is ready and then does `script`."""
    return (sys.executable, "-c", READY + script)


def inside(work: Callable[[Sandbox], Awaitable[object]], **how: object) -> None:
    """Do `work` with a sandbox that is closed at the end."""

    async def main() -> None:
        box = Sandbox(**how)  # type: ignore[arg-type]
        try:
            await work(box)
        finally:
            await box.close()

    asyncio.run(main())


def boxes() -> set[int]:
    """The processes that this one has started and that still run."""
    return set(children(os.getpid()))
