"""Freed memory is kept on a CPU: the next forward finds its pages in place. Telling so changes nothing."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache

import pytest
import torch

from omnimuse.worker.allocator import kept_memory

PROGRAM = """
import resource, sys
from threading import Thread
import torch
from omnimuse.worker.allocator import keep_memory

def use(times, megabytes=40):
    for _ in range(times):
        torch.ones(megabytes * 2**18)

def count():
    use(40)  # until the holes between other blocks are large enough
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use(6)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "kept":
    keep_memory(torch.device("cpu"))
elif sys.argv[1] == "explained":
    from omnimuse import explain
    assert any((choice.name, choice.value) == ("freed memory", "kept") for choice in explain("omnimuse/shapes"))
thread = Thread(target=count)  # as an engine has one
thread.start()
thread.join()
"""


@cache
def new_pages(how: str) -> int:
    """Pages that a process was given while it used and freed the same memory again and again."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.costly(turns=3)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed blocks back at once")
def test_memory_that_was_used_needs_few_new_pages() -> None:
    assert new_pages("kept") < new_pages("given back") / 2


@pytest.mark.costly(turns=3)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed blocks back at once")
def test_explaining_that_memory_is_kept_keeps_none() -> None:
    assert new_pages("explained") > 2 * new_pages("kept")


def test_on_another_device_nothing_is_kept() -> None:
    assert kept_memory(torch.device("cuda")) is None
