"""What this machine gives to this process: cores, the share of them that a container allows, and memory. No torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_PROCESSOR = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
"""Of what the system says of a core, what others of its kind have in common."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def whole_cores() -> int:
    """Those of them that are no second thread of another one; as many as `cores` where the system does not tell."""
    if sys.platform != "linux":
        return cores()
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {tuple(_lines(Path(topology.format(core)))) or core for core in os.sched_getaffinity(0)}
    return len(siblings)


def memory(root: Path = Path("/")) -> int:
    """The bytes of memory that this process may use: the machine's, or less where its control groups allow less."""
    limits = [_bytes(folder) for folder in _folders(root, "memory")]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *filter(None, limits)])


def quota(root: Path = Path("/")) -> float | None:
    """The cores' worth of time that control groups allow this process; None where nothing limits it."""
    limits = [_limit(folder) for folder in _folders(root, "cpu")]
    return min((limit for limit in limits if limit is not None), default=None)


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor is called and which instructions it has, one to a line, as far as the system tells."""
    first = "\n".join(_lines(file)).partition("\n\n")[0].splitlines()  # one paragraph a core
    told = [f"{name.strip()}: {' '.join(rest.split())}" for name, _, rest in (line.partition(":") for line in first)]
    found = [line for line in told if line.startswith(_PROCESSOR)]
    return "\n".join(found or [platform.machine(), platform.processor()])


def resident() -> int:
    """Resident memory in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as told:  # every tick asks
            pages = told.read(256).split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def waited() -> float | None:
    """Seconds that the threads of this process have been ready and had no core, all together; None if nobody tells."""
    total, told = 0, False
    for task in Path("/proc/self/task").glob("*"):
        for line in _lines(task / "schedstat"):  # running, waiting (nanoseconds), slices
            total, told = total + int(line.split()[1]), True
    return total / 1e9 if told else None


def waited_here() -> float:
    """Those of the calling thread alone; zero where nobody tells. One file: quickly asked."""
    lines = _lines(Path("/proc/thread-self/schedstat"))
    return int(lines[0].split()[1]) / 1e9 if lines else 0.0


def idle() -> float:
    """Seconds that the cores of this process have had nothing to do, all together; zero where nobody tells."""
    if sys.platform != "linux":
        return 0.0
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    told = (line.split() for line in _lines(Path("/proc/stat")) if line.startswith("cpu"))
    return sum(int(words[4]) for words in told if words[0] in ours) / os.sysconf("SC_CLK_TCK")


# -- control groups ------------------------------------------------------------------------------------------------


class _Mount(NamedTuple):
    """A mounted hierarchy of groups: of a controller (version 1) or "" (version 2), the group at its top, and where it
    is.
    """

    controller: str
    root: str
    point: str


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Of our group and every one above it, whose limits hold as well, what says how much of this it allows.

    Both versions are read. `root` is where `proc` is, and what `proc` names is; tests have a folder of their own.
    """
    groups = dict(_groups(_lines(root / "proc/self/cgroup"), controller))
    for mount in _mounts(_lines(root / "proc/self/mountinfo"), controller):
        if mount.controller in groups:
            folder = root / mount.point.lstrip("/")
            yield from (folder / group for group in _with_parents(groups[mount.controller], mount.root))


def _groups(lines: list[str], controller: str) -> Iterator[tuple[str, str]]:
    """Controller -> our group, from `/proc/self/cgroup`; version 2 has one group, under ""."""
    for line in lines:
        _, names, group = line.split(":", 2)
        if names == "" or controller in names.split(","):
            yield (controller if names else ""), group


def _mounts(lines: list[str], controller: str) -> Iterator[_Mount]:
    """The hierarchies that can limit this, from `/proc/self/mountinfo`."""
    for line in lines:
        place, _, system = line.partition(" - ")
        root, point = place.split(" ")[3:5]
        kind, *_, options = system.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield _Mount("" if kind == "cgroup2" else controller, root, point)


def _with_parents(group: str, root: str) -> tuple[PurePosixPath, ...]:
    """`group` and all that it is in, as seen from a mount whose top is the group `root`."""
    path = PurePosixPath(group)
    inside = path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else PurePosixPath()
    return inside, *inside.parents


def _limit(folder: Path) -> float | None:
    """The quota of one group over its period: `cpu.max` of version 2, two files of version 1."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        words = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _bytes(folder: Path) -> int | None:
    """What one group may have of memory: `memory.max` of version 2, a file of version 1; "max" where all there is."""
    words = " ".join([*_lines(folder / "memory.max"), *_lines(folder / "memory.limit_in_bytes")]).split()
    return int(words[0]) if words and words[0].isdecimal() else None


def _lines(file: Path) -> list[str]:
    """What a file holds; nothing where it cannot be read, as outside Linux."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
