"""Thumbnails and sheets of kept videos: made when somebody first asks, kept beside the video, removed with it.

`routes/videos.py` asks. A process of its own reads the video (`media/stills.py`), one of a tenant at a time and not for
long: what goes wrong in a decoder ends that process and nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from omnimuse.core.errors import OmnimuseError
from omnimuse.media.destination import write_whole
from omnimuse.server.jobs.files import Files

KINDS = {"thumbnail": ".webp", "spritesheet": ".jpeg"}
"""What can be asked for, and the suffix of the file that it is kept in."""
SECONDS = 60.0
TOGETHER = 2
"""Stills that are made at once, each for another tenant."""

Make = Callable[[Path, str], Awaitable[bytes]]


class Stills:
    """The stills of one server's videos; lives on its event loop."""

    def __init__(self, files: Files, make: Make | None = None) -> None:
        """`make` gives the content of a still of a video; the usual one starts a process."""
        self._files, self._make = files, make or _make
        self._places = asyncio.Semaphore(TOGETHER)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, name: str, kind: str, tenant: str = "") -> Path:
        """Where the `kind` of the kept video `name` is, made if need be; FileNotFoundError when the video is gone.

        A tenant waits for one still of each other tenant at most, however many they ask for.
        """
        video = self._files.path(name)
        still = video.with_suffix(KINDS[kind])
        if await asyncio.to_thread(still.exists):
            return still
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        async with turn, self._places:
            if not await asyncio.to_thread(still.exists):
                content = await self._make(video, kind)
                await asyncio.to_thread(_keep, video, still, content)
        return still


def _keep(video: Path, still: Path, content: bytes) -> None:
    write_whole(still, content)
    if not video.exists():  # removed meanwhile, and nobody would remove this
        still.unlink(missing_ok=True)
        raise FileNotFoundError(video.name)


async def _make(video: Path, kind: str) -> bytes:
    """The content of a still; cancelling ends the process that makes it."""
    if not await asyncio.to_thread(video.exists):
        raise FileNotFoundError(video.name)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "omnimuse.media.stills", kind, str(video), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(SECONDS):
            content, said = await process.communicate()
    except TimeoutError:
        raise OmnimuseError(f"no {kind} of {video.name} could be made in {SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
    if process.returncode:
        raise OmnimuseError(f"no {kind} of {video.name} could be made: {said.decode(errors='replace')[-500:]}")
    return content
