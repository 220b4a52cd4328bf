"""Starts one single-threaded process per core, joined by gloo, and paces them by one shared clock.

Two OpenMP threads in one process crawl when anything else runs; two processes do not.  The children get an
allocator that keeps its pages (page faults cost half the step on a virtual machine otherwise).
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_CHILD_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=100000000000:glibc.malloc.top_pad=268435456",
}


@dataclass(frozen=True)
class Rank:
    """This process among ``world``, and where its tensors live."""

    index: int
    world: int
    device: str

    @property
    def first(self) -> bool:
        return self.index == 0

    def sum(self, buffer: torch.Tensor) -> None:
        """Adds ``buffer`` up over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(buffer)


def _start(index: int, world: int, device: str, worker: Callable[..., None], args: tuple) -> None:
    torch.set_num_threads(1)
    os.setsid()  # outlives the terminal, and is scheduled as a session of its own
    if world > 1:
        dist.init_process_group("gloo", rank=index, world_size=world, timeout=datetime.timedelta(minutes=30))
    worker(Rank(index, world, device), *args)
    if world > 1:
        dist.destroy_process_group()


def launch(worker: Callable[..., None], args: tuple, world: int, device: str, port: int) -> None:
    """Runs ``worker(rank, *args)`` in ``world`` processes and waits; on cuda use a world of 1."""
    if world > 1 and device != "cpu":
        raise ValueError(f"processes={world} on device={device!r}; several processes need cpu, so use 1")
    os.environ.update(_CHILD_ENVIRONMENT, MASTER_PORT=str(port))
    mp.start_processes(_start, (world, device, worker, args), nprocs=world, start_method="spawn")


class Clock:
    """Seconds trained, earlier runs included, and the share of the budget they are.

    The budget is ``minutes`` in all, or, with ``until``, ends at that next "HH:MM".
    """

    def __init__(self, minutes: float, spent: float = 0.0, until: str = "") -> None:
        self._budget = spent + minutes_until(until) * 60 if until else minutes * 60
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        return min(1.0, self.spent / self._budget)

    @property
    def left(self) -> str:
        return str(datetime.timedelta(seconds=max(0, int(self._budget - self.spent))))


def minutes_until(moment: str) -> float:
    """Minutes from now to the next "HH:MM" of the local clock."""
    hour, minute = (int(part) for part in moment.split(":"))
    now = datetime.datetime.now()
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if end < now:
        end += datetime.timedelta(days=1)
    return (end - now).total_seconds() / 60
