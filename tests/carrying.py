"""Pools without processes: how a test cuts a pipeline, and carries what a request takes along."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from omnimuse.core.output import Handed
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.pipeline.stage import Loop, Stage
from omnimuse.worker.packing import Packer
from omnimuse.worker.plan import Heard


def three(stages: Sequence[Stage]) -> DeployConfig:
    """What is before the first loop, the loops of a drawing, and what comes behind them."""
    names = [stage.name for stage in stages]
    first = next(index for index, stage in enumerate(stages) if isinstance(stage, Loop))
    cuts = [0, first, first + 1, len(names)]
    held = [tuple(names[begin:end]) for begin, end in pairwise(cuts)]
    return DeployConfig(tuple(PoolConfig(f"pool{number}", part) for number, part in enumerate(held) if part))


def carried(piece: Handed, records: tuple[type[Any], ...] = ()) -> Heard:
    """`piece` as it arrives in another process."""
    packer = Packer(records)
    head = packer.pack(piece.handover.plain())
    data = bytearray(packer.size)
    packer.write(memoryview(data))
    return Heard(piece.request_id, head, memoryview(data))
