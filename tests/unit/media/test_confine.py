"""What a child that was taken over can still do: the attacks, made from inside one."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnimuse.media.decoder import CPU, MEMORY
from omnimuse.media.sandbox import ENVIRONMENT
from omnimuse.media.seccomp import MACHINES
from tests.processes import alive

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES, reason="there is no filter of calls for this system"
)

NOT_EVERYWHERE = {"a network of its own"}
"""What a container may withhold, and what then is left is enough for everything tested here."""

BEFORE = """
import ctypes, json, mmap, os, resource, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.c_long
parent, others = os.getppid(), {others}
from omnimuse.media import decoder
if others:
    for _, attempt in decoder.WORKS.values():
        attempt()  # while this user may read the libraries
    os.setuid(others)
"""

ATTACK = (
    BEFORE
    + """
lacking = decoder.prepare()
for number in (0, *range(2, 64)):  # what is left is number 1, for the report
    try:
        os.close(number)
    except OSError:
        pass
here = libc.syscall
calls = dict({calls})
memory = ctypes.create_string_buffer(64)
report = dict(lacking=lacking)

def attack(name, work):
    try:
        got = work()
    except OSError as error:
        report[name] = error.errno
    except ValueError as error:  # as Python calls EPERM of setrlimit
        report[name] = 1 if "not allowed to raise" in str(error) else repr(error)
    except MemoryError:
        report[name] = "memory"
    else:
        report[name] = f"was possible: {{got!r}}"

def raw(number, *arguments):
    ctypes.set_errno(0)
    got = here(word(number), *arguments)
    if got == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return got

attack("open a file", lambda: open(sys.executable, "rb"))
attack("open the environment of the parent", lambda: open(f"/proc/{{parent}}/environ", "rb"))
attack("open its own memory", lambda: open("/proc/self/mem", "rb"))
attack("list a folder", lambda: os.listdir("/"))
attack("write a file", lambda: open("/tmp/omnimuse-was-here", "w"))
attack("look at a file", lambda: os.stat("/etc/passwd"))
attack("remove a file", lambda: os.unlink("/tmp/omnimuse-not-there"))
attack("a socket", lambda: socket.socket())
attack("a unix socket", lambda: socket.socket(socket.AF_UNIX))
attack("a pair of sockets", lambda: socket.socketpair())
attack("a pipe", os.pipe)
attack("another number", lambda: os.dup(1))
attack("fork", os.fork)
attack("a program", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
attack("a process", lambda: subprocess.Popen([sys.executable]))
attack("kill the parent", lambda: os.kill(parent, 0))
attack("kill itself", lambda: os.kill(os.getpid(), 0))
attack("kill everybody", lambda: os.kill(-1, 0))
attack("priority", lambda: os.nice(1))
attack("be root", lambda: os.setuid(0))
attack("more descriptors", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)))
attack("more time", lambda: resource.setrlimit(resource.RLIMIT_CPU, (999, 999)))
attack("memory that is code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
for name, (number, arguments) in calls.items():
    attack("raw " + name, lambda: raw(number, *(memory if a == "memory" else parent if a == "parent" else word(a)
                                                for a in arguments)))
attack("a gigabyte", lambda: bytearray(2**30))
os.write(1, json.dumps(report).encode())
os._exit(0)
"""
)

RAW = {
    # name: numbers on (x86_64, aarch64), arguments
    "openat": ((257, 56), (-100, "memory", 0, 0)),
    "openat2": ((437, 437), (-100, "memory", "memory", 24)),
    "open_by_handle_at": ((304, 265), (-100, "memory", 0)),
    "socket": ((41, 198), (2, 1, 0)),
    "connect": ((42, 203), (1, "memory", 16)),
    "sendmsg": ((46, 211), (1, "memory", 0)),
    "clone": ((56, 220), (17, 0, 0, 0, 0)),
    "clone3": ((435, 435), ("memory", 64)),
    "execveat": ((322, 281), (-100, "memory", 0, 0, 0)),
    "tgkill": ((234, 131), ("parent", "parent", 0)),
    "rt_sigqueueinfo": ((129, 138), ("parent", 0, "memory")),
    "pidfd_open": ((434, 434), ("parent", 0)),
    "pidfd_send_signal": ((424, 424), (0, 0, 0, 0)),
    "ptrace attach": ((101, 117), (16, "parent", 0, 0)),
    "ptrace seize": ((101, 117), (0x4206, "parent", 0, 0)),
    "process_vm_readv": ((310, 270), ("parent", "memory", 1, "memory", 1, 0)),
    "process_vm_writev": ((311, 271), ("parent", "memory", 1, "memory", 1, 0)),
    "process_madvise": ((440, 440), (0, "memory", 1, 0, 0)),
    "prlimit of the parent": ((302, 261), ("parent", 7, 0, "memory")),
    "prctl": ((157, 167), (4, 1, 0, 0, 0)),
    "unshare": ((272, 97), (0x10000000,)),
    "setns": ((308, 268), (1, 0)),
    "mount": ((165, 40), ("memory", "memory", "memory", 0, 0)),
    "memfd_create": ((319, 279), ("memory", 0)),
    "io_uring_setup": ((425, 425), (1, "memory")),
    "bpf": ((321, 280), (0, "memory", 64)),
    "perf_event_open": ((298, 241), ("memory", 0, -1, -1, 0)),
    "userfaultfd": ((323, 282), (0,)),
    "keyctl": ((250, 219), (0, 0, 0, 0, 0)),
    "shmget": ((29, 194), (0, 4096, 0o1000)),
    "mq_open": ((240, 180), ("memory", 64, 0, 0)),
    "ioctl": ((16, 29), (1, 0x5412, "memory")),
    "fcntl": ((72, 25), (1, 0, 0)),
    "sched_setaffinity": ((203, 122), ("parent", 8, "memory")),
    "seccomp": ((317, 277), (1, 0, "memory")),
}


def run(program: str, timeout: float = 90) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=ENVIRONMENT)


@pytest.mark.parametrize("others", [0, 54_321], ids=["as it is", "of a user who is not root"])
def test_a_child_taken_over_reaches_nothing_even_after_it_closed_its_descriptors(others: int) -> None:
    if others and os.geteuid() != 0:
        pytest.skip("only root can become another user; as it is, this one is none")
    column = list(MACHINES).index(platform.machine())
    calls = {name: (numbers[column], arguments) for name, (numbers, arguments) in RAW.items()}
    done = run(ATTACK.format(calls=calls, others=others))
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert set(report.pop("lacking")) <= NOT_EVERYWHERE
    assert report.pop("a gigabyte") == "memory"
    assert len(report) == 23 + len(RAW)
    possible = {name: result for name, result in report.items() if result != 1}  # EPERM, by the filter: nothing else is
    assert not possible


LAYERS = (
    BEFORE
    + """
lacking = decoder.prepare()
os.write(1, (",".join(lacking) + chr(10)).encode())
os.read(0, 1)
"""
)


def test_each_means_of_confinement_stands_for_itself() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAYERS.format(others=0)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        lacking = child.stdout.readline().decode()
        about = Path(f"/proc/{child.pid}")
        said = dict(line.split(":\t", 1) for line in (about / "status").read_text().splitlines())
        limits = (about / "limits").read_text() if os.geteuid() == 0 else ""
        network = os.readlink(about / "ns/net") if os.geteuid() == 0 else ""
        child.stdin.close()
    assert (said["NoNewPrivs"], said["Seccomp"], said["Seccomp_filters"]) == ("1", "2", "1")
    assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    if os.geteuid() == 0:
        assert said["Uid"].split() == ["65531"] * 4 == said["Gid"].split()
        assert said["Groups"].strip() == ""
        for name in ("Max open files", "Max processes", "Max file size", "Max core file size", "Max locked memory"):
            [line] = [line for line in limits.splitlines() if line.startswith(name)]
            assert line.removeprefix(name).split()[:2] == ["0", "0"], line
        shared = network == os.readlink("/proc/self/ns/net")
        assert shared is ("a network of its own" in lacking)


def test_computation_and_memory_have_an_end() -> None:
    done = run("from omnimuse.media import confine\nconfine.bound(2**30)\nconfine.lock_in(1)\nwhile True: pass")
    assert done.returncode == -signal.SIGXCPU
    assert MEMORY <= 2**30 and CPU <= 15


def test_a_child_cannot_end_the_process_that_asks_it() -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        program = (
            "import os\nfrom omnimuse.media import decoder\ndecoder.prepare()\n"
            f"try:\n    os.kill({victim.pid}, 9)\nexcept PermissionError:\n    os._exit(7)"
        )
        assert run(program).returncode == 7
        assert alive(victim.pid)
    finally:
        victim.kill()
        victim.wait()
