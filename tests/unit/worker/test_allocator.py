"""Freed memory is kept on a CPU: the next forward finds its pages in place."""

from __future__ import annotations

import platform
import resource
from threading import Thread

import pytest
import torch

from omnimuse.worker.allocator import keep_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed blocks back at once")


def page_faults(repeat: int = 20, megabytes: int = 80) -> int:
    """New pages that this process was given while it used and freed the same memory over and over."""
    for _ in range(6):  # until the holes between other blocks are large enough
        torch.ones(megabytes * 2**18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeat):
        torch.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_memory_that_was_used_once_needs_no_new_pages() -> None:
    choice = keep_memory(torch.device("cpu"))
    assert choice is not None
    assert choice.value == "kept"
    assert page_faults() < 200_000  # a page is 4 KiB: without it, twice as many


@glibc
def test_the_same_holds_in_a_thread_like_that_of_an_engine() -> None:
    keep_memory(torch.device("cpu"))
    found: list[int] = []
    thread = Thread(target=lambda: found.append(page_faults()))
    thread.start()
    thread.join()
    assert found[0] < 200_000


def test_on_another_device_nothing_is_changed() -> None:
    assert keep_memory(torch.device("cuda")) is None
