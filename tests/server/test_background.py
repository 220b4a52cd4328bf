"""Work beside the requests: a turn that fails is not the last one, and nobody has to guess that it failed."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from omnimuse.server.background import TOO_OFTEN, Background
from omnimuse.server.jobs.files import Files
from omnimuse.server.routes.health import unready
from tests.server.jobs.test_jobs import run
from tests.server.video_rig import Rig
from tests.waiting import until


class Turns:
    """Fails as long as it is told to."""

    def __init__(self) -> None:
        self.taken, self.failing = 0, True
        self.told: list[str] = []

    async def turn(self) -> float:
        self.taken += 1
        if self.failing:
            raise FileNotFoundError("a file that another thread has renamed")
        return 60.0


def with_turns(act: Callable[[Background, Turns], Awaitable[None]]) -> Turns:
    turns = Turns()

    async def main() -> None:
        work = Background("tidying up", turns.turn, turns.told.append)
        work.start()
        await act(work, turns)
        await work.stop()

    asyncio.run(main())
    return turns


async def take(work: Background, turns: Turns, count: int) -> None:
    while turns.taken < count:
        work.wake()
        await asyncio.sleep(0.001)


def test_a_turn_that_fails_is_logged_counted_and_followed_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    async def act(work: Background, turns: Turns) -> None:
        await take(work, turns, TOO_OFTEN - 1)
        assert work.trouble == ""
        await take(work, turns, TOO_OFTEN + 1)
        assert "tidying up" in work.trouble
        turns.failing = False
        await take(work, turns, TOO_OFTEN + 2)
        await asyncio.sleep(0.01)
        assert work.trouble == ""

    with caplog.at_level(logging.ERROR):
        turns = with_turns(act)
    assert turns.told == ["tidying up"] * (TOO_OFTEN + 1)
    assert caplog.text.count("FileNotFoundError: a file that another thread has renamed") == TOO_OFTEN + 1


def test_a_failure_is_tried_again_without_being_woken() -> None:
    async def act(work: Background, turns: Turns) -> None:
        await until(lambda: turns.taken == 2)

    with_turns(act)


def test_jobs_are_drawn_although_tidying_up_fails_and_the_server_says_so(tmp_path: Path) -> None:
    stuck = tmp_path / "files" / "no-file.png"  # cannot be removed as a file
    stuck.mkdir(parents=True)
    os.utime(stuck, (0, 0))

    async def act(parts: Rig) -> None:
        await until(lambda: "tidying up fails again and again" in unready(parts.service))
        assert (await parts.ended(await parts.submit("a hill"))).state == "completed"
        assert b'omnimuse_background_failures_total{chore="tidying up"} 3.0' in parts.service.metrics.render()[0]

    run(tmp_path, act)


def test_tidying_up_passes_over_files_that_vanish_while_it_looks(tmp_path: Path) -> None:
    files, over = Files(tmp_path, reserve=0), threading.Event()

    def busy() -> None:
        while not over.is_set():
            part = tmp_path / "files" / ".made.part"
            part.write_bytes(b"x")
            part.rename(tmp_path / "files" / "made.png")

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(2000):
            assert files.expire(3600.0) == 0
    finally:
        over.set()
        thread.join()


def test_a_data_folder_that_is_gone_has_no_room(tmp_path: Path) -> None:
    files = Files(tmp_path / "data", reserve=0)
    assert files.storage_ok()
    shutil.rmtree(tmp_path / "data")
    assert not files.storage_ok()
