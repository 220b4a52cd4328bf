"""The ranks that share one engine's work, found when a process starts."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from omnimuse.core.config import ParallelConfig
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError
from omnimuse.parallel.meeting import Gone, join, watched
from omnimuse.parallel.mesh import Mesh


def connect(config: ParallelConfig, gone: Gone | None = None) -> Mesh:
    """The ranks that share the work: this process alone, those that it has met, or those that `torchrun` started.

    EngineDeadError as soon as `gone` tells of one that has ended.
    """
    if config.ranks == 1:
        return Mesh.single()
    if not dist.is_initialized():
        environment = Environment.read()
        if environment.world_size != config.ranks:
            raise ConfigError(
                f"parallel {config} needs {config.ranks} processes, this run has {environment.world_size}; "
                f"start it with `torchrun --nproc-per-node {config.ranks} -m omnimuse ...`"
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(environment.local_rank)
        wait = timedelta(seconds=config.wait)
        store, rank, _ = next(iter(dist.rendezvous("env://", timeout=wait)))
        join(store, rank, config, "nccl" if torch.cuda.is_available() else "gloo")
    return watched(partial(Mesh.from_process_group, config), gone)
