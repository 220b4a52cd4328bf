"""A filter of system calls, as Linux reads it: what a process may still ask of the kernel once it only computes.

`confine` installs it. A list of what is allowed, not of what is not: reading and writing what is open, memory that is
no code, time, and the end. Every other call fails with EPERM, calls of another architecture end the process. The
program is classic BPF and can be read here; no library is needed for forty instructions.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

LOAD, EQUAL, AT_LEAST, HAS_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""The instructions in use: load a word of the call; jump if it equals, is at least, shares a bit with K; return K."""
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
"""What the kernel does with a call: SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM, SECCOMP_RET_KILL_PROCESS."""

_NUMBER, _ARCHITECTURE, _SECOND, _THIRD = 0, 4, 24, 32  # where a call (struct seccomp_data) holds them
_EXECUTABLE = 4  # PROT_EXEC
_OTHER_ABI = 0x40000000  # numbers of x32 calls, on a kernel for x86_64, begin here
_SET_FILTER, _ALL_THREADS = 1, 1

MAPPING = ("mmap", "mprotect")
"""Calls that are allowed unless they ask for memory that can be executed: their third argument says so."""
WAITING = "futex"
"""The call of locks, which is allowed to wait and to wake; what else it can do has been a way into the kernel."""
WAITS = (0, 1, 128, 129, 137, 138, 393)
"""Its second argument: FUTEX_WAIT and WAKE, plain and private; WAIT_BITSET (by either clock) and WAKE_BITSET."""


@dataclass(frozen=True)
class Machine:
    """An architecture: its name for the kernel's audit, the number of the call `seccomp`, and those of calls allowed.

    The numbers stand in the kernel's asm/unistd.h and never change.
    """

    audit: int
    seccomp: int
    calls: Mapping[str, int]


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(
        audit=0xC000003E,
        seccomp=317,
        calls={
            "read": 0,
            "write": 1,
            "close": 3,
            "mmap": 9,
            "mprotect": 10,
            "munmap": 11,
            "brk": 12,
            "rt_sigprocmask": 14,
            "rt_sigreturn": 15,
            "mremap": 25,
            "madvise": 28,
            "exit": 60,
            "gettimeofday": 96,
            "futex": 202,
            "restart_syscall": 219,
            "clock_gettime": 228,
            "exit_group": 231,
        },
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        seccomp=277,
        calls={
            "close": 57,
            "read": 63,
            "write": 64,
            "exit": 93,
            "exit_group": 94,
            "futex": 98,
            "clock_gettime": 113,
            "restart_syscall": 128,
            "rt_sigprocmask": 135,
            "rt_sigreturn": 139,
            "gettimeofday": 169,
            "brk": 214,
            "munmap": 215,
            "mremap": 216,
            "mmap": 222,
            "mprotect": 226,
            "madvise": 233,
        },
    ),
}

Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip if it holds, and if not, and K."""

_Line = tuple[int, str, str, int]
"""The same with the block to go to in place of a number; an empty name is the next line."""


def program(machine: Machine) -> list[Instruction]:
    """The filter for `machine`."""
    blocks = {
        "start": _start(machine),
        "mapping": [(LOAD, "", "", _THIRD), (HAS_BIT, "refuse", "allow", _EXECUTABLE)],
        "waiting": [(LOAD, "", "", _SECOND), *_search(dict.fromkeys(WAITS, "allow"))],
        "refuse": [(RETURN, "", "", REFUSE)],
        "allow": [(RETURN, "", "", ALLOW)],
        "kill": [(RETURN, "", "", KILL)],
    }
    places, lines = {}, list[_Line]()
    for name, block in blocks.items():
        places[name] = len(lines)
        lines += block
    jump = [{"": 0} | {name: place - here - 1 for name, place in places.items()} for here in range(len(lines))]
    return [(code, skip[yes], skip[no], k) for (code, yes, no, k), skip in zip(lines, jump, strict=True)]


def _start(machine: Machine) -> list[_Line]:
    special = dict.fromkeys(MAPPING, "mapping") | {WAITING: "waiting"}
    return [
        (LOAD, "", "", _ARCHITECTURE),
        (EQUAL, "", "kill", machine.audit),
        (LOAD, "", "", _NUMBER),
        (AT_LEAST, "kill", "", _OTHER_ABI),
        *_search({number: special.get(name, "allow") for name, number in machine.calls.items()}),
    ]


def _search(targets: Mapping[int, str]) -> list[_Line]:
    """Go where the word that is held leads, and refuse any other."""
    *most, last = targets.items()
    return [*((EQUAL, target, "", number) for number, target in most), (EQUAL, last[1], "refuse", last[0])]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(machine: Machine, libc: ctypes.CDLL) -> None:
    """Filter the calls of all threads of this process from now on, for good; OSError where the kernel refuses.

    The process must have given up new privileges (PR_SET_NO_NEW_PRIVS) or be root.
    """
    instructions = program(machine)
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    content = ctypes.create_string_buffer(packed, len(packed))
    whole = _Program(len(instructions), ctypes.addressof(content))
    if libc.syscall(ctypes.c_long(machine.seccomp), _SET_FILTER, _ALL_THREADS, ctypes.byref(whole)) != 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def machine_here(name: str) -> Machine | None:
    """The architecture that `name` (of `os.uname`) stands for, if this process runs as it and there is a filter."""
    return MACHINES.get(name) if sys.platform == "linux" and sys.maxsize > 2**32 else None
