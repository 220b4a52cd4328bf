"""How the ranks of a group find each other: all within the time that ranks wait, or none of them.

`deploy/ranks.py` and `worker/connect.py` call `join` with a store that all ranks can reach. A rank that is late is
waited for; those that gave up leave a word for it, so that it does not wait in its turn. A rank that has ended cannot
come back: what its group works on is not known to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import EngineDeadError

PAUSE = 0.05  # seconds between two looks for the others


def store_at(meeting: str, rank: int, config: ParallelConfig) -> dist.Store:
    """The store at `meeting`: a file (file://PATH), or rank 0's port (tcp://HOST:PORT).

    EngineDeadError if nobody is there within `config.wait` seconds.
    """
    at = urlsplit(meeting)
    if at.scheme == "file":
        return dist.FileStore(at.path, config.ranks)
    assert at.scheme == "tcp" and at.hostname is not None and at.port is not None, meeting
    wait = timedelta(seconds=config.wait)
    try:
        return dist.TCPStore(at.hostname, at.port, config.ranks, rank == 0, wait, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        raise EngineDeadError(
            f"rank {rank} cannot meet the others at {at.netloc} ({error}); see that that machine can be reached from "
            "here, and start the engine again"
        ) from error


def join(
    store: dist.Store, rank: int, config: ParallelConfig, backend: str, gone: Callable[[], str] = lambda: ""
) -> None:
    """Make this process rank `rank` of the group that `config` asks for, once all its ranks are there.

    EngineDeadError if they are not within `config.wait` seconds, had given up before, or have this rank already, and as
    soon as `gone` tells of one that nobody need wait for.
    """
    if store.add(_here(rank), 1) > 1:
        raise EngineDeadError(
            f"rank {rank} of this group was there already, and a rank cannot come twice; start all {config.ranks} "
            "ranks of the group again"
        )
    _wait_for_all(store, rank, config, gone)
    wait = timedelta(seconds=config.wait)
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=config.ranks, timeout=wait)


def _wait_for_all(store: dist.Store, rank: int, config: ParallelConfig, gone: Callable[[], str]) -> None:
    until = time.monotonic() + config.wait
    missing = list(range(config.ranks))
    while True:
        if store.check(["over"]):
            raise EngineDeadError(
                f"rank {rank} came too late: the others waited for it, for wait={config.wait:g} seconds, and have "
                f"ended; start all {config.ranks} ranks again, and allow more with ParallelConfig(wait=SECONDS) or "
                "--rank-wait"
            )
        if lost := gone():
            raise EngineDeadError(
                f"{lost} before all ranks had come; look at what it said, and whether the machine ran out of memory, "
                "and start the engine again"
            )
        missing = [other for other in missing if not store.check([_here(other)])]
        if not missing:
            return
        if time.monotonic() > until:
            store.set("over", str(rank))
            absent = ", ".join(map(str, missing))
            raise EngineDeadError(
                f"of {config.ranks} ranks these did not come within wait={config.wait:g} seconds: {absent}; look at "
                "what they said, or allow more with ParallelConfig(wait=SECONDS), --rank-wait"
            )
        time.sleep(PAUSE)


def _here(rank: int) -> str:
    return f"here/{rank}"
