"""How many threads an engine computes with, and why. Decided here and nowhere else; no torch.

Asked by the build, whose engine then computes with them, and by `doctor`. An engine keeps its number, but
where one fewer changes no bit (`crew.py`): products and sums are split by it (`docs/performance.md`).
"""

from __future__ import annotations

from dataclasses import dataclass

from omnimuse.core.config import Choice, HostConfig
from omnimuse.core.environment import Environment
from omnimuse.core.machine import cores, quota, whole_cores


@dataclass(frozen=True)
class Room:
    """What bounds the threads here: cores, the cores' worth of time of the container, OMP_NUM_THREADS, torch's setting.

    The last is None unless it is another than torch takes by itself (OMP_NUM_THREADS, or one a core, or one a whole
    core): then somebody has chosen it.
    """

    cores: int
    quota: float | None = None
    omp_threads: int | None = None
    torch_threads: int | None = None

    @staticmethod
    def here(torch_threads: int | None = None) -> Room:
        """That of this process, in which torch, if it is imported, computes with `torch_threads`."""
        omp_threads = Environment.read().omp_threads
        chosen = None if torch_threads in (omp_threads, cores(), whole_cores()) else torch_threads
        return Room(cores(), quota(), omp_threads, chosen)


def choose_threads(config: HostConfig, room: Room) -> tuple[int, Choice]:
    """The threads of one process: those of the first who says something, shared by all who share the machine."""
    total, why = _total(config, room)
    count = max(1, total // config.processes)
    if config.processes > 1:
        why = f"{total} shared by {config.processes} processes: {why}"
    return count, Choice("place", "threads", str(count), why)


def _total(config: HostConfig, room: Room) -> tuple[int, str]:
    if config.threads is not None:
        return config.threads, "asked for"
    if room.torch_threads is not None:
        return room.torch_threads, "torch was set so in this process"
    if room.omp_threads is not None:
        return room.omp_threads, "OMP_NUM_THREADS says so"
    if room.quota is not None and room.quota < room.cores:
        return max(1, int(room.quota)), f"the container may use {room.quota:g} of {room.cores} cores"
    return room.cores, f"this process may use {room.cores} core{'s' * (room.cores > 1)}"
