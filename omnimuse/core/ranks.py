"""How many ranks share the work of one engine, along which axes, and who starts them. Frozen; no torch.

`core/config.py` has them among the choices of an engine, `core/pools.py` among those of a pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from omnimuse.core.errors import ConfigError
from omnimuse.core.kinds import check_kinds

LAUNCHERS = ("local", "agent", "ray")


@dataclass(frozen=True)
class LaunchConfig:
    """Who starts what a server has elsewhere, and where: the ranks of its groups that are not the first, and groups of
    one rank whole (docs/parallel.md).

    `"local"` starts all on the front's machine. Agents join at `address` (HOST:PORT), if they know the key in
    `key_file`. Of Ray, `address` is the cluster's; empty, it is looked for.
    """

    launcher: str = "local"
    address: str = ""
    key_file: Path | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "launch")
        if self.launcher not in LAUNCHERS:
            raise ConfigError(f"--launcher {self.launcher} is not known; use one of {', '.join(LAUNCHERS)}")
        if self.launcher == "local" and (self.address or self.key_file):
            raise ConfigError("--launcher local starts processes here; leave --launch-address and --agent-key-file out")
        if self.launcher == "ray" and self.key_file is not None:
            raise ConfigError("--agent-key-file is what agents must know; leave it out with --launcher ray")
        if self.launcher == "agent":
            host, _ = host_and_port(self.address, "--launch-address")
            if host in ("0.0.0.0", "::"):
                raise ConfigError(
                    f"--launch-address {self.address} names no machine, and ranks elsewhere find this one by it; write "
                    "the address of the interface that they reach"
                )
            if self.key_file is None and host not in ("127.0.0.1", "localhost", "::1"):
                raise ConfigError(f"anybody who reaches {host} could join as an agent; give --agent-key-file")


def host_and_port(text: str, option: str) -> tuple[str, int]:
    """`HOST:PORT`; ConfigError for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{option} {text!r} is no address; write HOST:PORT, such as 127.0.0.1:7000")
    return host.strip("[]"), int(port)


AXES = ("tensor", "ulysses", "ring", "cfg", "pipe", "shard", "vae_tiles")
"""The fields of `ParallelConfig` that say how work is shared."""
MOST_RANKS = 65536
"""More than any engine has; far larger numbers are none that a tensor's size could be divided by."""
RANK_WAIT = 1800.0
"""Seconds that ranks wait for one another: the first forward of a group may be compiled in them."""
MOST_WAIT = 365 * 24 * 3600.0
"""A year; what waits for longer cannot be told in torch's milliseconds on every platform."""


@dataclass(frozen=True)
class ParallelConfig:
    """How many ranks share the work of one engine, along every axis; all together there are `ranks`.

    `tensor` ranks each hold a part of every block's weights, `ulysses` and `ring` ranks each compute a part of a row's
    tokens (by an exchange of heads, and by passing keys on), `cfg` ranks each compute some of a step's guidance
    branches, `pipe` ranks each hold some of the blocks. With `shard`, the ranks that share tokens keep the weights
    of blocks in parts, and with `vae_tiles` all ranks decode tiles of pictures; neither takes ranks of its own. What
    does not fit a model is refused when the engine starts.

    `wait` is how many seconds a rank waits for the others: to be there, to have loaded, and in the midst of a forward.
    Whoever has waited in vain ends the engine. `launch` is where a server starts the ranks of its groups.
    """

    tensor: int = 1
    ulysses: int = 1
    ring: int = 1
    cfg: int = 1
    pipe: int = 1
    shard: int = 1
    vae_tiles: int = 1
    elastic: bool = False
    wait: float = RANK_WAIT
    launch: LaunchConfig = LaunchConfig()

    def __post_init__(self) -> None:
        check_kinds(self, "parallel")
        for axis in AXES:
            if (count := getattr(self, axis)) < 1:
                raise ConfigError(f"parallel {axis}={count} is not allowed; use at least 1, which is one rank")
        if self.ranks > MOST_RANKS:
            raise ConfigError(f"parallel {self} is {self.ranks} ranks, which is not allowed; use at most {MOST_RANKS}")
        if self.cfg > 3:
            raise ConfigError(
                f"parallel cfg={self.cfg} is not allowed; guidance has two branches, of some models three: use 1 to 3"
            )
        if self.shard not in (1, self.sequence):
            raise ConfigError(
                f"parallel shard={self.shard} cannot be: weights are kept in parts by the ranks that share tokens, "
                f"ulysses={self.ulysses} x ring={self.ring}; use shard={self.sequence}, or as many of those"
            )

        if self.elastic and (self.ulysses == 1 or self.ranks > self.ulysses or self.shard > 1):
            raise ConfigError(
                f"parallel elastic cannot be with {self}: teams are ranks that share tokens, heads and nothing else; "
                "use ulysses alone, such as ulysses=4"
            )
        if self.vae_tiles not in (1, self.ranks):
            why = f"all {self.ranks} ranks decode tiles, or none does; use vae_tiles={self.ranks}, or 1"
            if self.ranks == 1:
                why = "there is one rank, which decodes all; ask for others (ulysses=2), or use vae_tiles=1"
            raise ConfigError(f"parallel vae_tiles={self.vae_tiles} cannot be: {why}")
        if not 0 < self.wait <= MOST_WAIT:
            raise ConfigError(
                f"parallel wait={self.wait} is not allowed (--rank-wait); use a number of seconds above 0, at most "
                f"{MOST_WAIT:.0f}"
            )
        if self.wait != RANK_WAIT and self.ranks == 1 and self.launch == LaunchConfig():
            raise ConfigError(
                f"parallel wait={self.wait:g} does nothing on one rank, which waits for nobody; leave it out, or ask "
                "for ranks (tensor=2)"
            )

    def in_parts(self) -> ParallelConfig:
        """These ranks, where those that share tokens keep the weights of blocks in parts, as `use_hsdp` asks."""
        if self.sequence == 1:
            raise ConfigError(
                f"use_hsdp does nothing for {self}: weights are kept in parts by the ranks that share tokens, and "
                "there are none; ask for some (ulysses=2), or leave it out"
            )
        return replace(self, shard=self.sequence)

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return prod(getattr(self, axis) for axis in AXES if axis not in ("shard", "vae_tiles"))

    @property
    def divisions(self) -> tuple[int, ...]:
        """Into how many teams of equal size the ranks may be divided between two steps; 1: not at all."""
        most = self.ulysses if self.elastic else 1
        return tuple(count for count in range(1, most + 1) if most % count == 0)

    @property
    def sequence(self) -> int:
        """How many ranks share the tokens of a row."""
        return self.ring * self.ulysses

    def __str__(self) -> str:
        asked = [f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(asked) or "one rank"
