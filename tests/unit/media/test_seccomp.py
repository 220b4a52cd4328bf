"""The filter of system calls, run as the kernel runs it, for machines that this one is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omnimuse.media.seccomp import (
    ALLOW,
    AT_LEAST,
    EQUAL,
    HAS_BIT,
    KILL,
    LOAD,
    MACHINES,
    MAPPING,
    REFUSE,
    RETURN,
    WAITING,
    WAITS,
    Machine,
    program,
)

HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
FORBIDDEN = {
    "x86_64": {"open": 2, "openat": 257, "socket": 41, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62}
    | {"ptrace": 101, "process_vm_readv": 310, "prctl": 157, "tgkill": 234, "io_uring_setup": 425, "clone3": 435},
    "aarch64": {"openat": 56, "socket": 198, "clone": 220, "execve": 221, "kill": 129, "ptrace": 117}
    | {"process_vm_readv": 270, "prctl": 167, "tgkill": 131, "io_uring_setup": 425, "clone3": 435},
}
INSIDE = {"x86_64": "aarch64", "aarch64": "x86_64"}


def verdict(machine: Machine, number: int, audit: int, second: int = 0, third: int = 0) -> int:
    """What the program says of a call, as the kernel's machine for classic BPF would."""
    lines = program(machine)
    data, at, held = {0: number, 4: audit, 24: second, 32: third}, 0, 0
    for _ in range(1000):
        operation, yes, no, k = lines[at]
        at += 1
        if operation == RETURN:
            return k
        if operation == LOAD:
            held = data[k]
        else:
            holds = {EQUAL: held == k, AT_LEAST: held >= k, HAS_BIT: bool(held & k)}[operation]
            at += yes if holds else no
    raise AssertionError("the program does not end")


@pytest.mark.parametrize("name", MACHINES)
def test_only_listed_calls_are_allowed_and_none_that_makes_code(name: str) -> None:
    machine = MACHINES[name]
    allowed = {number for number in range(1000) if verdict(machine, number, machine.audit) == ALLOW}
    assert allowed == set(machine.calls.values())
    assert {verdict(machine, number, machine.audit) for number in range(1000)} == {ALLOW, REFUSE}
    assert all(skip <= 255 for _, yes, no, _ in program(machine) for skip in (yes, no)), "a jump is one byte"
    assert all(skip >= 0 for _, yes, no, _ in program(machine) for skip in (yes, no)), "and forwards"
    for call, number in machine.calls.items():
        assert verdict(machine, number, machine.audit, third=5) == (REFUSE if call in MAPPING else ALLOW), "executable"
        assert verdict(machine, number, machine.audit, third=3) == ALLOW
    assert not allowed & set(FORBIDDEN[name].values())


@pytest.mark.parametrize("name", MACHINES)
def test_locks_may_wait_and_wake_and_nothing_else(name: str) -> None:
    machine = MACHINES[name]
    number = machine.calls[WAITING]
    allowed = {second for second in range(512) if verdict(machine, number, machine.audit, second) == ALLOW}
    assert allowed == set(WAITS)
    assert {second & 0x7F for second in allowed} == {0, 1, 9, 10}


@pytest.mark.parametrize("name", MACHINES)
def test_calls_of_another_architecture_end_the_process(name: str) -> None:
    machine = MACHINES[name]
    for audit in (MACHINES[INSIDE[name]].audit, 0x40000003, 0):
        assert verdict(machine, machine.calls["read"], audit) == KILL
    assert verdict(machine, 0x40000000 | machine.calls["read"], machine.audit) == KILL, "x32"
    assert verdict(machine, 0xFFFFFFFF, machine.audit) == KILL


def test_both_machines_allow_the_same() -> None:
    assert MACHINES["x86_64"].calls.keys() == MACHINES["aarch64"].calls.keys()


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_those_of_the_kernel_s_header(name: str) -> None:
    header = Path(HEADERS[name])
    if not header.is_file():
        pytest.skip(f"the kernel's header {header} is not installed")
    text = header.read_text()
    aliases = {call: int(number) for call, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    wanted = MACHINES[name].calls | FORBIDDEN[name] | {"seccomp": MACHINES[name].seccomp}
    assert {call: aliases.get(call) for call in wanted} == wanted
