"""Ranks of a test, each a process, forked from one that has imported what tests need: that takes longer than a test."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from typing import Any

import torch.multiprocessing as mp


def play(part: Callable[..., None], *arguments: Any, ranks: int) -> None:
    """`part(rank, *arguments)` on every rank; the first failure of one is raised.

    The process that they are forked from starts with the first ranks of a run and computes nothing itself.
    """
    begin(part, *arguments, ranks=ranks)()


def begin(part: Callable[..., None], *arguments: Any, ranks: int) -> Callable[[], None]:
    """The same for groups of which several wait at once: what this returns waits for the end, and raises."""
    set_forkserver_preload(["tests.checkpoints.families", "omnimuse.engine.local", "tests.forked"])
    group = mp.start_processes(part, args=arguments, nprocs=ranks, join=False, start_method="forkserver")  # type: ignore[no-untyped-call]

    def end() -> None:
        while not group.join():
            pass

    return end
