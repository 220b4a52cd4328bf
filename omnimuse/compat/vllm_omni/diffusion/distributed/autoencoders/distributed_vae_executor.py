"""`vllm_omni.diffusion.distributed.autoencoders.distributed_vae_executor`: pieces of decoding that ranks share.

An autoencoder says how its latents are cut, how a piece is decoded and how pieces are joined. Which rank decodes which,
and how all of them get all of them, is ours (`parallel/tiles.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.contract.surroundings import axis, inside
from omnimuse.core.errors import ModelError
from omnimuse.parallel.mesh import ALL, Axis
from omnimuse.parallel.tiles import shapes_told, shared

TILES = "tile"


@dataclass
class GridSpec:
    """How pieces lie: how many along each of `split_dims`, what joins them is told, and the format of what is made."""

    split_dims: tuple[int, ...]
    grid_shape: tuple[int, ...]
    tile_spec: dict[str, Any] = field(default_factory=dict)
    output_dtype: torch.dtype | None = None


@dataclass
class TileTask:
    """A piece: its place in the grid, what is decoded, and how much work that is beside others."""

    tile_id: int
    grid_coord: tuple[int, ...]
    tensor: Any
    workload: float = 1


@dataclass
class DistributedOperator:
    """`split(latents)` gives tasks and their grid, `exec(task)` what a task makes, and `merge(made, grid)` the whole of
    what was made, by the tasks' places.
    """

    split: Callable[[Tensor], tuple[Sequence[TileTask], GridSpec]]
    exec: Callable[[Any], Tensor]
    merge: Callable[[dict[tuple[int, ...], Tensor], GridSpec], Any]


class DistributedVaeExecutor:
    """The ranks that decode: the first `parallel_size` of all."""

    def __init__(self) -> None:
        self.parallel_size = 1
        self.parallel_mode = TILES

    @property
    def axis(self) -> Axis:
        """All ranks of the engine."""
        return axis(ALL, "DistributedVaeExecutor")

    @property
    def world_size(self) -> int:
        """How many there are."""
        return self.axis.size

    @property
    def rank(self) -> int:
        """Which this is."""
        return self.axis.index

    def set_parallel_size(self, parallel_size: int, mode: str = TILES) -> None:
        """So many ranks decode from now on; ModelError for a `mode` that is not by tiles."""
        if mode != TILES:
            raise ModelError(
                f"vae_parallel_mode={mode!r} is not here: ranks share tiles; use {TILES!r}, or leave it out"
            )
        self.parallel_size = parallel_size

    def execute(self, z: Tensor, operator: DistributedOperator, broadcast_result: bool = True) -> Any:
        """What the operator makes of latents `z`, on every rank, which all call this: whether or not it is to be sent
        to others (`broadcast_result`), each has all pieces and joins them.
        """
        ranks = self.axis
        tasks, grid = operator.split(z)
        owners = dealt(tasks, min(self.parallel_size, ranks.size))
        like = z.new_empty([0] * z.ndim, dtype=grid.output_dtype or z.dtype)
        mine = [operator.exec(task).to(like) for task, owner in zip(tasks, owners, strict=True) if owner == ranks.index]
        pieces = shared(ranks, mine, owners, shapes_told(ranks, mine, owners, like), like)
        return operator.merge({task.grid_coord: piece for task, piece in zip(tasks, pieces, strict=True)}, grid)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def dealt(tasks: Sequence[TileTask], ranks: int) -> list[int]:
    """Which rank has each task: the largest first, to whoever has least to do."""
    load, owners = [0.0] * ranks, [0] * len(tasks)
    for number in sorted(range(len(tasks)), key=lambda each: -tasks[each].workload):
        owners[number] = load.index(min(load))
        load[owners[number]] += tasks[number].workload
    return owners


class DistributedVaeMixin:
    """An autoencoder whose tiles ranks share, where they are asked to (`vae_patch_parallel_size`)."""

    distributed_executor: DistributedVaeExecutor

    def init_distributed(self) -> None:
        """It may share tiles from now on."""
        self.distributed_executor = DistributedVaeExecutor()

    def set_parallel_size(self, parallel_size: int, mode: str = TILES) -> None:
        """So many ranks decode."""
        if not hasattr(self, "distributed_executor"):
            self.init_distributed()
        self.distributed_executor.set_parallel_size(parallel_size, mode=mode)

    def is_distributed_enabled(self) -> bool:
        """Whether several ranks decode, in tiles."""
        if not hasattr(self, "distributed_executor") or not hasattr(self, "use_tiling") or not inside():
            return False
        executor = self.distributed_executor
        return bool(self.use_tiling) and min(executor.parallel_size, executor.world_size) > 1


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
