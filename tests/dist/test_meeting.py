"""How ranks find each other: who is late is waited for, who is too late or comes twice is told what to do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import EngineDeadError
from omnimuse.parallel.meeting import join, watched
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


def store(meeting: Path) -> dist.FileStore:
    return dist.FileStore(str(meeting), 2)


def come(rank: int, late: float, meeting: Path) -> None:
    """Rank 1 is late, and yet all meet."""
    time.sleep(late * rank)
    join(store(meeting), rank, ParallelConfig(ulysses=2, wait=60.0), "gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 2
    dist.destroy_process_group()


def test_a_rank_that_is_late_is_waited_for(tmp_path: Path) -> None:
    play(come, 0.5, tmp_path / "meeting", ranks=2)


def test_a_rank_that_never_comes_is_named_and_one_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    hasty, met = ParallelConfig(ulysses=2, wait=0.2), store(tmp_path / "meeting")
    with pytest.raises(EngineDeadError, match=r"did not come within wait=0.2 seconds: 1; .* --rank-wait"):
        join(met, 0, hasty, "gloo")
    with pytest.raises(EngineDeadError, match=r"rank 1 came too late: .*start all 2 ranks again"):
        join(met, 1, hasty, "gloo")


def test_a_rank_that_ended_cannot_come_back(tmp_path: Path) -> None:
    met = store(tmp_path / "meeting")
    met.add("here/1", 1)  # what it said when it came for the first time
    with pytest.raises(EngineDeadError, match="rank 1 of this group was there already"):
        join(met, 1, ParallelConfig(ulysses=2), "gloo")


def test_a_rank_that_has_ended_before_it_came_is_not_waited_for(tmp_path: Path) -> None:
    looks = iter(["", "", "rank 1 was ended by SIGKILL"])
    begun = time.monotonic()
    with pytest.raises(EngineDeadError, match=r"^rank 1 was ended by SIGKILL before all ranks had come; look at"):
        join(store(tmp_path / "meeting"), 0, ParallelConfig(ulysses=2, wait=60.0), "gloo", lambda: next(looks))
    assert time.monotonic() - begun < 30


def test_a_rank_that_has_ended_after_it_came_is_not_waited_for_either(tmp_path: Path) -> None:
    looks, met = iter([*[""] * 9, *["rank 1 was ended by SIGKILL"] * 9]), store(tmp_path / "meeting")
    met.add("here/1", 1)  # it came, and connects with nobody
    begun = time.monotonic()
    with pytest.raises(EngineDeadError, match=r"^rank 1 was ended by SIGKILL before all ranks had connected; look at"):
        join(met, 0, ParallelConfig(ulysses=2, wait=40.0), "gloo", lambda: next(looks))
    assert time.monotonic() - begun < 20 and not dist.is_initialized()


def test_what_fails_while_ranks_connect_is_blamed_on_the_one_that_has_ended(tmp_path: Path) -> None:
    def connect() -> None:
        raise RuntimeError("Connection reset by peer")

    looks = iter(["", "", "rank 2 ended with status 1"])
    with pytest.raises(EngineDeadError, match="rank 2 ended with status 1 before all ranks had connected"):
        watched(connect, lambda: next(looks, "rank 2 ended with status 1"))
    with pytest.raises(RuntimeError, match="reset by peer"):
        watched(connect, lambda: "")
    assert watched(lambda: 7, lambda: "") == 7
