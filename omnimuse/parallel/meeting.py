"""How the ranks of a group find each other: all within the time that ranks wait, or none of them.

`deploy/ranks.py` and `worker/connect.py` call `join` with a store that all ranks can reach. A rank that is late is
waited for; those that gave up leave a word for it, so that it does not wait in its turn. A rank that has ended cannot
come back: what its group works on is not known to it.

Once all have come they connect, and torch waits there as long as ranks wait at all, also for one that has ended
meanwhile: nobody sees that before there are connections. So whoever is told of it, as who has started the others is,
has them connect by `watched`. Who has not is ended by whoever started it (`deploy/replica.py`, torchrun).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import EngineDeadError, OmnimuseError

PAUSE = 0.05  # seconds between two looks for the others
LATER = 20  # such looks, since who ends is told of a little after its connections break
T = TypeVar("T")
Gone = Callable[[], str]
"""Which rank has ended, and how; empty while all live."""


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


def join(store: dist.Store, rank: int, config: ParallelConfig, backend: str, gone: Gone | None = None) -> None:
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
    meet = partial(dist.init_process_group, backend, store=group, rank=rank, world_size=config.ranks, timeout=wait)
    watched(meet, gone)


def watched(connect: Callable[[], T], gone: Gone | None) -> T:
    """What `connect` returns, which waits for other ranks; EngineDeadError as soon as `gone` tells of one that ended.

    Nothing ends a call of torch's that waits, so it has a thread of its own, which nobody waits for then.
    """
    if gone is None:
        return connect()
    made, device = Future[T](), torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # each thread has its own
            made.set_result(connect())
        except (OmnimuseError, OSError, RuntimeError, ValueError) as error:  # who waits for it raises it
            made.set_exception(error)
        finally:
            made.cancel()  # by what nobody expected, if it is not done

    thread = threading.Thread(target=work, name="omnimuse-connect", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(PAUSE)
        _refuse_if(gone(), "had connected")
    for _ in range(LATER if made.exception() is not None else 0):
        time.sleep(PAUSE)
        _refuse_if(gone(), "had connected")
    return made.result()


def _refuse_if(lost: str, when: str) -> None:
    if lost:
        raise EngineDeadError(
            f"{lost} before all ranks {when}; look at what it said, and whether the machine ran out of memory, and "
            "start the engine again"
        )


def _wait_for_all(store: dist.Store, rank: int, config: ParallelConfig, gone: Gone | None) -> None:
    until = time.monotonic() + config.wait
    missing = list(range(config.ranks))
    while True:
        if store.check(["over"]):
            raise EngineDeadError(
                f"rank {rank} came too late: the others waited for it, for wait={config.wait:g} seconds, and have "
                f"ended; start all {config.ranks} ranks again, and allow more with ParallelConfig(wait=SECONDS) or "
                "--rank-wait"
            )
        _refuse_if("" if gone is None else gone(), "had come")
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
