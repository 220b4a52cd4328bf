"""Pools: the processes that the stages of a pipeline live in, as a deploy file places them (docs/deploy.md).

Frozen and checked when made; which stages there are, the model says (`parts_of`). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import accumulate, chain
from typing import Any

from omnimuse.core.attention import AttentionConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.ranks import ParallelConfig

WINDOW = 8
"""Requests that a pool takes on before it has handed over earlier ones, unless somebody chose."""
MOST_REPLICAS = 256
NEAR = ("local", "shared_memory")
"""Connectors of which both ends are on one machine."""
DTYPES = ("float32", "bfloat16", "float16")
"""Number formats that networks may compute in."""
REST = "*"
"""What stands for all stages that no pool before holds."""


@dataclass(frozen=True)
class PoolConfig:
    """A pool: some stages of a pipeline that follow one another (`*`: all that are left), or whole `tracks` by number.

    There are `replicas` of it, each a process, or as many as `parallel` has ranks. `device` is where they compute, or
    several with commas between them, one for every rank of a replica, or of all; empty: where the engine would. `dtype`
    is the number format in which they do, empty: that of the engine. What comes in is carried by `connector`, and at
    most `window` requests are in one replica that have not left it. Those of a pool that is `elsewhere` are started by
    the launcher, on other machines. Who writes there, and with which Python that runs, say `writer` and `python`, and
    which backends attend, `attention`; empty: as the engine would.
    """

    name: str
    stages: tuple[str, ...] = ()
    tracks: tuple[int, ...] = ()
    replicas: int = 1
    device: str = ""
    dtype: str = ""
    connector: str = "shared_memory"
    window: int = WINDOW
    elsewhere: bool = False
    writer: str = ""
    python: str = ""
    parallel: ParallelConfig = ParallelConfig()
    attention: AttentionConfig = AttentionConfig()

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ConfigError(f"pool name {self.name!r} is not allowed; use letters, digits, - and _")
        if bool(self.stages) == bool(self.tracks):
            raise ConfigError(
                f"pool {self.name} has to say which stages it holds, or which tracks; give one of the two"
            )
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise ConfigError(f"pool {self.name}: replicas={self.replicas} is not allowed; use 1 to {MOST_REPLICAS}")
        if self.window < 1:
            raise ConfigError(f"pool {self.name}: window={self.window} is not allowed; use at least 1")
        if self.dtype not in ("", *DTYPES):
            raise ConfigError(
                f"pool {self.name}: dtype={self.dtype!r} is not allowed; use one of {', '.join(DTYPES)}, or auto, that "
                "of the engine"
            )
        if self.elsewhere and self.connector in NEAR:
            raise ConfigError(f"pool {self.name}: {self.connector} reaches nothing elsewhere; use connector: tcp")
        if self.parallel.ranks > 1:
            self._check_ranks()
        count, ranks = len(self.device.split(",")), self.parallel.ranks
        if count not in (1, ranks, ranks * self.replicas):
            raise ConfigError(
                f"pool {self.name}: device {self.device} is {count} devices, and the pool has {ranks * self.replicas} "
                f"processes ({self.replicas} replicas x {ranks} ranks); name one for each, or one for all, or ask for "
                "ranks (parallel: {tensor: 2}, tensor_parallel_size) or replicas"
            )

    def _check_ranks(self) -> None:
        ranks = f"pool {self.name}: {self.parallel.ranks} ranks ({self.parallel})"
        if self.connector == "local":
            raise ConfigError(
                f"{ranks} are processes, and connector: local keeps a pool in that of the front; use shared_memory"
            )
        if self.elsewhere:
            raise ConfigError(f"{ranks} cannot be elsewhere; keep them on this machine, or use replicas of one rank")
        if self.writer not in ("", "own"):
            raise ConfigError(f"{ranks} share out nothing where {self.writer} writes; leave one of the two out")

    def device_of(self, replica: int) -> str:
        """Where that replica computes; of several ranks theirs, with commas between them."""
        named, ranks = self.device.split(","), self.parallel.ranks
        return ",".join(named[replica * ranks : (replica + 1) * ranks]) if len(named) > ranks else self.device


@dataclass(frozen=True)
class DeployConfig:
    """All pools, in the order in which a request goes through them; none: everything in one process.

    In a process of one of them, `pool` is its name. `void` are keys of a file of another engine's that mean nothing
    here, which the log lists. `connectors` are options of connectors, by their names. `source` is the file, if any.
    `sampling` is what a file of another engine has requests asked with where they say nothing, stage by stage; only the
    door for that engine's scripts reads it.
    """

    pools: tuple[PoolConfig, ...] = ()
    pool: str = ""
    void: tuple[str, ...] = ()
    connectors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: str = ""
    sampling: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        names = [pool.name for pool in self.pools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two pools are called {twice[0]!r}; give each a name of its own")
        if self.pool and self.pool not in names:
            raise ConfigError(f"there is no pool {self.pool!r}; the pools are {', '.join(names)}")

    def wrong(self, why: str) -> ConfigError:
        """What is raised of something in it that turns out to be wrong: it names the file."""
        return ConfigError(f"{self.source}: {why}" if self.source else why)

    def wrong_of(self, pool: str, why: ConfigError) -> ConfigError:
        """Why that pool cannot be, with the file that asks for it."""
        return self.wrong(f"pool {pool}: {why}")

    @property
    def here(self) -> PoolConfig | None:
        """The pool that this process is of."""
        return next((pool for pool in self.pools if pool.name == self.pool), None)


def parts_of(pools: Sequence[PoolConfig], tracks: Sequence[Sequence[str]]) -> list[range]:
    """Which stages each pool holds, by their numbers, of a pipeline whose tracks have stages of these names.

    ConfigError unless every stage is in one pool, in the order of the pipeline.
    """
    names = list(chain.from_iterable(tracks))
    ends = [0, *accumulate(map(len, tracks))]
    order = ", ".join(repr(name) for name in names)
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"this pipeline cannot be cut into pools: two of its stages are called {doubled[0]!r}")
    parts: list[range] = []
    at = 0
    for pool in pools:
        for number in pool.tracks:
            if not 0 <= number < len(tracks):
                raise ConfigError(
                    f"pool {pool.name}: there is no track {number}; the tracks are 0 to {len(tracks) - 1}: make fewer "
                    f"pools, or say by `pools:` which stages each holds, of {order}"
                )
        held = (
            names[at:]
            if pool.stages == (REST,)
            else pool.stages or [name for number in pool.tracks for name in names[ends[number] : ends[number + 1]]]
        )
        if not held:
            raise ConfigError(
                f"pool {pool.name} is left with no stage: those before it hold all there are, which are {order}; leave "
                "it out, or say by `pools:` which stages each holds"
            )
        for offset, name in enumerate(held):
            if name == REST:
                raise ConfigError(f"pool {pool.name}: {REST!r} is all stages that are left, and stands alone")
            if name not in names:
                near = get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigError(f"pool {pool.name}: there is no stage {name!r}; {hint}the stages are {order}")
            if names.index(name) != at + offset:
                expected = repr(names[at + offset]) if at + offset < len(names) else "nothing more"
                raise ConfigError(
                    f"pool {pool.name}: {name!r} stands where {expected} is to come; pools hold every stage once, in "
                    f"the order {order}"
                )
        parts.append(range(at, at + len(held)))
        at += len(held)
    if at < len(names):
        raise ConfigError(f"no pool holds the stage {names[at]!r}; the stages are {order}")
    return parts
