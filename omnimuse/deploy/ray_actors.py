"""Ranks as actors of Ray: a placement group for every life of a worker, an actor for each rank that is elsewhere.

An actor only starts the process that every rank is, waits for it and ends it. When its node is gone the actor is, too;
then the life is over, and the next one is placed where there is room. ray is imported here only. No torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError
from omnimuse.deploy.child import Settings, write_settings
from omnimuse.deploy.launch import Started
from omnimuse.deploy.process import COMMAND
from omnimuse.deploy.ranks import how

logger = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between two looks at whether there is room, so that nobody waits for long who does not want it any more."""


class RankActor:
    """Lives in a process of Ray's, beside the rank that it has started."""

    def __init__(self, command: list[str], settings: bytes) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=Environment.for_workers()
        )
        assert self._process.stdin is not None
        self._process.stdin.write(settings)
        self._process.stdin.flush()
        self._ended = threading.Event()

    def where(self) -> tuple[str, int, int]:
        """The node, by Ray's name for it, the process there, and its niceness, which is Ray's."""
        import ray

        return ray.get_runtime_context().get_node_id(), self._process.pid, os.nice(0)

    def wait(self) -> str:
        """How the rank ended, when it has."""
        return how(self._process.wait())

    def kill(self) -> None:
        """End the rank."""
        self._process.kill()


@dataclass(eq=False)
class Group:
    """The placement group of one life, and how many of its ranks have not ended."""

    placed: Any
    open: int = 0


@dataclass(eq=False)
class Acted:
    """A rank that an actor has started, on a node of the cluster."""

    actor: Any
    node: str
    ending: asyncio.Future[str]
    pid: int | None = None

    async def wait(self) -> str:
        """How it ended."""
        return await asyncio.shield(self.ending)

    def kill(self) -> None:
        """End the actor's process, and with it the rank, which dies with its parent."""
        import ray

        if not self.ending.done():
            ray.kill(self.actor, no_restart=True)


@dataclass
class RayActors:
    """A `Launcher` over the cluster at `address`; a life waits `patience` seconds for room in it.

    `gpus` is what a rank takes of them: 1 where it computes on one, else 0.
    """

    address: str
    patience: float
    gpus: int = 0
    command: tuple[str, ...] = COMMAND
    meeting: str = ""
    _groups: dict[str, Group] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def open(self) -> None:
        """Find the cluster; ConfigError where there is none, or no ray."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError('--launcher ray needs ray: pip install "omnimuse[ray]"') from None
        try:
            ray.init(address=self.address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"there is no cluster of Ray at {self.address or 'auto'} ({error}); start one with `ray start --head`"
            ) from None
        self.meeting = ray.util.get_node_ip_address()

    async def start(self, settings: Settings) -> Started:
        """An actor for this rank, in the placement group of its life; OSError if there is no room in time."""
        group = self._groups.get(settings.name) or await self._reserved(max(1, settings.ranks - 1))
        with self._lock:
            self._groups[settings.name] = group
            group.open += 1
        work = asyncio.ensure_future(asyncio.to_thread(self._start, settings, group, asyncio.get_running_loop()))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_end_if_started)
            raise

    def _start(self, settings: Settings, group: Group, loop: asyncio.AbstractEventLoop) -> Started:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = max(0, settings.rank - 1)
        where = PlacementGroupSchedulingStrategy(group.placed, placement_group_bundle_index=bundle)
        kind = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0)(RankActor)
        placed = kind.options(scheduling_strategy=where, max_concurrency=2)
        actor: Any = placed.remote(list(self.command), write_settings(settings))
        try:
            node, pid, nice = ray.get(actor.where.remote(), timeout=self.patience)
        except ray.exceptions.RayError as error:
            self._leave(settings.name)
            raise OSError(f"Ray started no rank {settings.rank}: {type(error).__name__}: {error}") from None
        logger.info("rank %d runs on node %s of Ray, as process %d", settings.rank, node[:8], pid)
        if nice > os.nice(0):
            logger.warning("rank %d has niceness %d: start Ray's nodes with RAY_worker_niceness=0", settings.rank, nice)
        ending: asyncio.Future[str] = asyncio.run_coroutine_threadsafe(_future(), loop).result()
        rank = Acted(actor, node, ending, None)
        threading.Thread(
            target=self._watch, args=(rank, settings.name, loop, pid), name="omnimuse-ray-rank", daemon=True
        ).start()
        return rank

    async def _reserved(self, ranks: int) -> Group:
        """A placement group with room for so many ranks, as few nodes apart as there can be; nothing if cancelled."""
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        bundle = {"CPU": 1.0, **({"GPU": float(self.gpus)} if self.gpus else {})}
        placed = await asyncio.to_thread(placement_group, [bundle] * ranks, strategy="PACK")
        end = time.monotonic() + self.patience
        try:
            while not await asyncio.to_thread(placed.wait, min(LOOK, max(0.0, end - time.monotonic()))):
                if time.monotonic() >= end:
                    raise OSError(
                        f"Ray has no room for {ranks} ranks of {bundle} after {self.patience:g} s; it has "
                        f"{ray.available_resources()}"
                    )
        except BaseException:
            remove_placement_group(placed)
            raise
        return Group(placed)

    def _leave(self, name: str) -> None:
        from ray.util.placement_group import remove_placement_group

        with self._lock:
            group = self._groups[name]
            group.open -= 1
            if group.open:
                return
            del self._groups[name]
        remove_placement_group(group.placed)

    def _watch(self, rank: Acted, name: str, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        """On a thread of its own: wait for the rank, let go of its place, and tell."""
        import ray

        try:
            said = f"{ray.get(rank.actor.wait.remote())} as process {pid} of node {rank.node[:8]}"
        except ray.exceptions.RayError as error:
            said = f"was lost with its actor on node {rank.node[:8]} ({type(error).__name__})"
        if ray.is_initialized():
            self._leave(name)
        if not loop.is_closed():
            loop.call_soon_threadsafe(rank.ending.set_result, said)

    async def close(self) -> None:
        """Leave the cluster."""
        import ray

        await asyncio.to_thread(ray.shutdown)


def _end_if_started(work: asyncio.Future[Started]) -> None:
    """Nobody waits for this rank any more."""
    if not work.cancelled() and work.exception() is None:
        work.result().kill()


async def _future() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()
