"""Memory that the C library keeps for the next forward instead of giving it back. Asked once per build; Linux only.

glibc maps every block of more than a few hundred kilobytes anew and gives it back when it is freed, so every hidden
state is paid for with page faults, which for elementwise operations take longer than the arithmetic
(`docs/performance.md`).
"""

from __future__ import annotations

import ctypes
import platform

import torch

from omnimuse.core.config import Choice

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
MAPPED_ABOVE = 2**30  # bytes: larger blocks are weights, which come once
TRIMMED_ABOVE = 2**31 - 1  # bytes at the end of the heap that nobody uses; the most that mallopt takes


def kept_memory(device: torch.device) -> Choice | None:
    """That `keep_memory` keeps freed blocks in a process that computes on `device`, and why; None if it does not."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return None
    return Choice("place", "freed memory", "kept", "on a CPU, new pages take longer than the arithmetic on them")


def keep_memory(device: torch.device) -> None:
    """Keep freed blocks in this process, if it computes on the CPU and its C library is glibc."""
    if kept_memory(device) is None:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MAPPED_ABOVE)
    libc.mallopt(M_TRIM_THRESHOLD, TRIMMED_ABOVE)
    libc.mallopt(M_ARENA_MAX, 1)  # a thread's own heaps are small, and given back


def give_back() -> None:
    """Give the system what the C library keeps of memory that nobody uses any more, where that is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
