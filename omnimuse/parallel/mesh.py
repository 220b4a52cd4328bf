"""The mesh: which ranks there are and along which axes they share work; the live counterpart of a parallel config.

Made once at start-up and passed to whoever needs it; there is no "current" mesh. Today it has one axis, `branches`:
each of its ranks evaluates some of a step's guidance branches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from omnimuse.core.errors import ConfigError

BRANCHES = "branches"

IDLE = timedelta(days=365)
"""How long a rank waits for the next plan. An idle engine sends none; a peer that dies is noticed at once."""


@dataclass(frozen=True)
class Axis:
    """One axis, seen from this rank: `ranks[index]` is this rank. `group` is None where there is nobody to talk to."""

    size: int = 1
    index: int = 0
    ranks: tuple[int, ...] = (0,)
    group: dist.ProcessGroup | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Mesh:
    """All ranks, seen from this one. `control` carries plans and messages between the CPUs of all ranks."""

    rank: int = 0
    size: int = 1
    branches: Axis = field(default_factory=Axis)
    control: dist.ProcessGroup | None = None

    @staticmethod
    def single() -> Mesh:
        """This process alone; needs no process group."""
        return Mesh()

    @staticmethod
    def from_process_group(cfg: int) -> Mesh:
        """The mesh over all ranks of `torch.distributed`, which has been initialized; every rank calls this.

        `cfg` ranks share the guidance branches. ConfigError if that does not use up the ranks there are.
        """
        if not dist.is_initialized():
            raise ConfigError("a mesh of several ranks needs torch.distributed; start the ranks with torchrun")
        rank, size = dist.get_rank(), dist.get_world_size()
        if cfg != size:
            raise ConfigError(f"parallel cfg={cfg} does not fit {size} ranks; today cfg must equal their number")
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
        branches = Axis(size, rank, tuple(range(size)), dist.group.WORLD, torch.device(device))
        return Mesh(rank, size, branches, control=dist.new_group(backend="gloo", timeout=IDLE))

    @property
    def is_leader(self) -> bool:
        """Whether this rank decides and the others follow."""
        return self.rank == 0

    @property
    def axes(self) -> dict[str, Axis]:
        """Every axis by name."""
        return {BRANCHES: self.branches}

    def axis(self, name: str) -> Axis:
        """One axis by name; ConfigError for one that does not exist."""
        if name not in self.axes:
            raise ConfigError(f"the mesh has no axis {name!r}; it has: {', '.join(self.axes)}")
        return self.axes[name]
