"""The mesh: which ranks there are and along which axes they share work; the live counterpart of a parallel config.

Made once at start-up and passed to whoever needs it; there is no "current" mesh. A rank has a place on each axis:
`branches`, `pipe`, `ring`, `ulysses` and `tensor`, from the outside in, so that the ranks that talk most are
neighbours. Three more follow from these: `sequence`, the ring and Ulysses together, `work`, all but the branches, whose
ranks run every forward together, and `all`.

An elastic mesh has others beside it, in which its ranks are divided into teams: each of these has fewer ranks along
Ulysses, and along the branches lie the teams, which exchange what they have found as branches do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from math import prod
from types import MappingProxyType

import torch
import torch.distributed as dist

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.parallel.line import Line, opened

BRANCHES = "branches"
PIPE = "pipe"
RING = "ring"
ULYSSES = "ulysses"
TENSOR = "tensor"
SEQUENCE = "sequence"
WORK = "work"
ALL = "all"
ORDER = (BRANCHES, PIPE, RING, ULYSSES, TENSOR)
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**{name: (name,) for name in ORDER}, SEQUENCE: (RING, ULYSSES), WORK: (PIPE, RING, ULYSSES, TENSOR), ALL: ORDER}
)
"""Every axis, and which of `ORDER` it goes along."""

IDLE = timedelta(days=365)
"""How long a rank waits for the next plan. An idle engine sends none; a peer that dies is noticed at once."""
PROMPT = timedelta(seconds=15)
"""How long a rank that failed waits for the others to say that they failed, too; no longer than ranks wait at all."""


@dataclass(frozen=True)
class Axis:
    """One axis, seen from this rank: `ranks[index]` is this rank. `group` is None where there is nobody to talk to.

    `control` is the same ranks from CPU to CPU: of the branches for what they tell of their rows, of all for where
    they meet, and of the work for what went wrong, where it waits no longer than `PROMPT`.
    """

    size: int = 1
    index: int = 0
    ranks: tuple[int, ...] = (0,)
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Teams:
    """Into how many teams ranks are divided now, and their mesh then; none beside 1 unless it is elastic."""

    meshes: dict[int, Mesh] = field(default_factory=dict)
    count: int = 1


@dataclass(frozen=True)
class Mesh:
    """All ranks, seen from this one. `control` carries plans and messages between the CPUs of all ranks, or `line` does
    where they are on one machine, and `alarm` what they tell each other when something went wrong.
    """

    rank: int = 0
    size: int = 1
    axes: Mapping[str, Axis] = field(default_factory=lambda: {name: Axis() for name in PARTS})
    control: dist.ProcessGroup | None = None
    alarm: dist.ProcessGroup | None = None
    line: Line | None = None
    teams: Teams = field(default_factory=Teams)

    @staticmethod
    def single() -> Mesh:
        """This process alone; needs no process group."""
        return Mesh()

    @staticmethod
    def planned(config: ParallelConfig, rank: int = 0, teams: int = 1) -> Mesh:
        """The mesh that `rank` will have, with nobody to talk to: for what can be told before ranks are there."""
        axes = {}
        for name in PARTS:
            ranks = next(ranks for ranks in lines(config, name, teams) if rank in ranks)
            axes[name] = Axis(len(ranks), ranks.index(rank), ranks)
        return Mesh(rank, config.ranks, axes)

    @staticmethod
    def from_process_group(config: ParallelConfig) -> Mesh:
        """The mesh over all ranks of `torch.distributed`, which has been initialized; every rank calls this.

        ConfigError if `config` does not use up the ranks there are.
        """
        if not dist.is_initialized():
            raise ConfigError("a mesh of several ranks needs torch.distributed; start the ranks with torchrun")
        rank, size = dist.get_rank(), dist.get_world_size()
        if config.ranks != size:
            raise ConfigError(f"{config} needs {config.ranks} ranks, and there are {size}; start as many as it needs")
        nccl = dist.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        wait = timedelta(seconds=config.wait)

        def axes(teams: int) -> dict[str, Axis]:
            planned = Mesh.planned(config, rank, teams).axes
            return {
                name: _connected(name, axis, lines(config, name, teams), device, wait) for name, axis in planned.items()
            }

        whole = axes(1)
        control = dist.new_group(backend="gloo", timeout=IDLE)
        alarm = dist.new_group(backend="gloo", timeout=min(wait, PROMPT))
        line = opened(rank, size, control, config.wait) if size > 1 else None
        divided = {count: Mesh(rank, size, axes(count), control, alarm) for count in config.divisions[1:]}
        return Mesh(rank, size, whole, control, alarm, line, Teams(divided))

    def close(self) -> None:
        """This rank hears and tells no more; the groups are torch's to end."""
        if self.line is not None:
            self.line.close()

    @property
    def now(self) -> Mesh:
        """That of the forward that runs now: this one, unless ranks are divided."""
        return self.teams.meshes.get(self.teams.count, self)

    @contextmanager
    def divided(self, teams: int) -> Iterator[Mesh]:
        """So many teams for the length of a `with` block, and the mesh that is `now` in it."""
        self.teams.count = teams
        try:
            yield self.now
        finally:
            self.teams.count = 1

    @property
    def is_leader(self) -> bool:
        """Whether this rank decides and the others follow."""
        return self.rank == 0

    def axis(self, name: str) -> Axis:
        """One axis by name; ConfigError for one that does not exist."""
        if name not in self.axes:
            raise ConfigError(f"the mesh has no axis {name!r}; it has: {', '.join(self.axes)}")
        return self.axes[name]


_CONTROLLED: Mapping[str, timedelta] = MappingProxyType({BRANCHES: IDLE, ALL: IDLE, WORK: PROMPT})
"""The axes that have a control group, and how long it waits, if not less by the config."""


def lines(config: ParallelConfig, axis: str, teams: int = 1) -> list[tuple[int, ...]]:
    """The ranks of every line along `axis`: those whose places differ on that axis only, in its order.

    They are divided into so many `teams`, which lie along the branches.
    """
    along = (config.cfg * teams, config.pipe, config.ring, config.ulysses // teams, config.tensor)
    sizes = dict(zip(ORDER, along, strict=True))
    found: dict[tuple[int, ...], list[int]] = {}
    for rank, place in enumerate(product(*(range(sizes[name]) for name in ORDER))):
        others = tuple(at for name, at in zip(ORDER, place, strict=True) if name not in PARTS[axis])
        found.setdefault(others, []).append(rank)
    assert all(len(ranks) == prod(sizes[name] for name in PARTS[axis]) for ranks in found.values())
    return [tuple(ranks) for ranks in found.values()]


def _connected(name: str, axis: Axis, ranks: list[tuple[int, ...]], device: torch.device, wait: timedelta) -> Axis:
    """`axis` with its groups. All ranks make the groups of all lines, in one order, as torch wants it."""
    if axis.size == 1:
        return Axis(1, 0, axis.ranks, device=device)
    group = control = None
    for line in ranks:
        made = dist.new_group(line, timeout=wait)
        limit = min(wait, _CONTROLLED.get(name, wait))
        talk = dist.new_group(line, backend="gloo", timeout=limit) if name in _CONTROLLED else None
        if line == axis.ranks:
            group, control = made, talk
    return Axis(axis.size, axis.index, axis.ranks, group, control, device)
