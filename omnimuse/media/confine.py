"""What a process gives up for good before it looks at what a stranger sent.

`decoder` calls `bound` first and, once it has loaded all that it needs, `lock_in`: from then on it computes, reads and
writes what is open, and ends. Each means stands for itself; what a system does not offer is returned with the reason,
so that somebody can be told. Linux has all of it; elsewhere the bounds hold and the rest is told as lacking.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from omnimuse.media.seccomp import install, machine_here

Lacking = dict[str, str]
"""What could not be had -> why."""

USER = 65_531
"""The user that a child of root becomes: one of those that no system gives to anybody."""

SOON = 60
"""Seconds of computation until `lock_in` says how many it may be."""

_NEW_USER, _NEW_IPC, _NEW_NETWORK = 0x10000000, 0x08000000, 0x40000000  # linux/sched.h
_END_WITH_PARENT, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38  # linux/prctl.h
_CAPABILITIES_V3, _MAY_KILL = 0x20080522, 5  # linux/capability.h
_SET_CAPABILITIES = {"x86_64": 126, "aarch64": 91}  # the number of the call


def bound(memory: int) -> None:
    """Bound the address space of this process to `memory` bytes, and what it may write or leave behind to nothing."""
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, SOON, beyond=1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)


def lock_in(seconds: int) -> Lacking:
    """Leave this process nothing but `seconds` of computation and what it has open; returns what could not be had.

    No file, socket or process can be made, no other process be reached, no memory become code. There is no way back.
    """
    resource_limits = [resource.RLIMIT_NPROC, resource.RLIMIT_MEMLOCK, resource.RLIMIT_NOFILE]
    spent = math.ceil(time.process_time())
    _limit(resource.RLIMIT_CPU, min(spent + seconds, SOON), beyond=1)
    if sys.platform != "linux":
        for what in resource_limits:
            _limit(what, 0)
        reason = f"{sys.platform} has none that omnimuse knows; run the server on Linux"
        return {"a filter of system calls": reason, "a network of its own": reason}
    libc, lacking = ctypes.CDLL(None, use_errno=True), Lacking()
    as_root = os.geteuid() == 0
    _try(lacking, "a network of its own", lambda: _leave_network(libc, as_root))
    if as_root:
        _try(lacking, "a user of its own", _change_user)
    _try(lacking, "no capabilities", lambda: _drop_capabilities(libc))
    _try(lacking, "an end with its parent", lambda: _control(libc, _END_WITH_PARENT, 9))
    _try(lacking, "memory that others cannot read", lambda: _control(libc, _DUMPABLE, 0))
    _try(lacking, "no new privileges", lambda: _control(libc, _NO_NEW_PRIVILEGES, 1))
    for what in resource_limits:
        _limit(what, 0)
    _try(lacking, "a filter of system calls", lambda: _filter(libc))
    return lacking


def _limit(what: int, most: int, beyond: int = 0) -> None:
    """`beyond` the limit the kernel kills; without a difference it would, of computation, give no other signal."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most + beyond if hard == resource.RLIM_INFINITY else min(most + beyond, hard)))


def _try(lacking: Lacking, name: str, step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        lacking[name] = error.strerror or str(error)


def _control(libc: ctypes.CDLL, what: int, value: int) -> None:
    _checked(libc.prctl(what, ctypes.c_ulong(value), 0, 0, 0))


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _leave_network(libc: ctypes.CDLL, as_root: bool) -> None:
    """A network without any device; who is not root needs a space of users of his own for it."""
    _checked(libc.unshare(_NEW_NETWORK | _NEW_IPC | (0 if as_root else _NEW_USER)))


def _change_user() -> None:
    if not _capable(_MAY_KILL):
        raise OSError(1, "this root may not end processes of other users, and must be able to end this one")
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)


def _capable(number: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """None effective, permitted or inheritable. A space of users of its own would have given all of them."""
    number = _SET_CAPABILITIES.get(os.uname().machine)
    if number is None:
        raise OSError(38, f"omnimuse does not know how on {os.uname().machine}")
    head, none = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    _checked(libc.syscall(ctypes.c_long(number), head, none))


def _filter(libc: ctypes.CDLL) -> None:
    machine = machine_here(os.uname().machine)
    if machine is None:
        raise OSError(38, f"omnimuse has no table of calls for {os.uname().machine}")
    install(machine, libc)
