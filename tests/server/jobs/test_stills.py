"""Stills of videos: who asks for many waits for them alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.stills import TOGETHER, Stills


def test_one_tenant_s_many_stills_do_not_keep_another_waiting(tmp_path: Path) -> None:
    files = Files(tmp_path, reserve=0)
    names = [f"job-{number:032x}.mp4" for number in range(40)]
    made: list[str] = []
    at_work = most = 0

    async def make(video: Path, kind: str) -> bytes:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.002)
        at_work -= 1
        made.append(video.name)
        return b"still"

    async def main() -> None:
        stills = Stills(files, make)
        for name in names:
            files.path(name).write_bytes(b"film")
        busy = [asyncio.create_task(stills.find(name, "thumbnail", "a")) for name in names[1:]]
        await asyncio.sleep(0.005)
        before = len(made)
        still = await stills.find(names[0], "thumbnail", "b")
        assert still.read_bytes() == b"still"
        assert len(made) - before <= 1 + TOGETHER, "it waits for no more than what was under way"
        again = await stills.find(names[0], "thumbnail", "b")
        assert again == still and made.count(names[0]) == 1
        await asyncio.gather(*busy)

    asyncio.run(main())
    assert most <= TOGETHER and sorted(made) == names
