"""Children that read files for others: bounded, kept ready, shared fairly, and gone whatever they do."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnimuse.core.errors import CapacityError
from omnimuse.media.sandbox import WAITING, Question, Sandbox, SandboxError
from tests.processes import alive, kill, wait_gone
from tests.unit.media.boxes import HANGS, READY, boxes, inside, speaking
from tests.unit.media.hostile import encoded, noise

FILE = encoded(noise(400, 400), "PNG")
QUESTION = Question("picture", FILE, {}, 10**6)
SMALL = Question("picture", encoded(noise(4, 4), "PNG"), {}, 10**6)

HEARS = "os.read(0, 2**20); "
SCRIPTS = {
    "hangs": (HANGS, "slow"),
    "kills itself": (HEARS + "os.kill(os.getpid(), 9)", "dead"),
    "fails": ("raise SystemExit(3)", "dead"),
    "says nothing": ("sys.stdin.buffer.read()", "slow"),
    "says something else": (HEARS + "print('ok'); print('<svg/>')", "dead"),
    "says too deep a thing": (HEARS + "print('[' * 10_000)", "dead"),
    "never ends its line": (HEARS + "\nwhile True: os.write(1, bytes(2**16))", "dead"),
    "promises more than allowed": (HEARS + "print('{\"length\": 1000001}')", "dead"),
    "promises less than nothing": (HEARS + "print('{\"length\": -1}')", "dead"),
    "promises no number": (HEARS + "print('{\"length\": true}')", "dead"),
    "gives less than it promised": (HEARS + 'print(\'{"length": 10}\'); print("four")', "dead"),
    "gives it in drips": (
        HEARS + "os.write(1, b'{\"length\": 9999}\\n')\nfor _ in range(99): os.write(1, b'x'); time.sleep(0.1)",
        "slow",
    ),
    "never reads": ("os.close(0); time.sleep(60)", "slow"),
    "uses its time up": (
        HEARS + "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass",
        "slow",
    ),
}


@pytest.mark.parametrize(("script", "trouble"), SCRIPTS.values(), ids=SCRIPTS)
def test_a_child_that_misbehaves_gives_no_answer_and_is_gone(script: str, trouble: str) -> None:
    before = boxes()

    async def work(box: Sandbox) -> None:
        with pytest.raises(SandboxError) as caught:
            await box.ask(QUESTION)
        assert caught.value.trouble == trouble

    inside(work, command=speaking(script), seconds=4 if "resource" in script else 1.5)
    assert boxes() <= before


FORKS = HEARS + "\nif os.fork() == 0: {before} open({note!r}, 'w').write(str(os.getpid())); time.sleep(60)\n"


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("leaves_its_group", [False, True])
@pytest.mark.parametrize("then", ["os._exit(0)", "time.sleep(60)", "os.write(1, b'{\"length\": 1}\\nx')"])
def test_a_child_that_forks_frees_its_place_in_time(tmp_path: Path, then: str, leaves_its_group: bool) -> None:
    note = tmp_path / "pid"
    answers = "length" in then
    wait = f"\nwhile not os.path.exists({str(note)!r}): time.sleep(0.01)\n"
    script = FORKS.format(before="os.setsid();" if leaves_its_group else "", note=str(note)) + wait + then

    async def work(box: Sandbox) -> None:
        for _ in range(3):
            note.unlink(missing_ok=True)
            if answers:
                assert await box.ask(SMALL) == b"x"
            else:
                with pytest.raises(SandboxError, match="slow"):  # the grandchild keeps the channel: only time can tell
                    await box.ask(SMALL)
            grandchild = int(note.read_text())
            if leaves_its_group:  # only confinement could have kept it from that
                assert alive(grandchild)
                kill(grandchild)
            assert wait_gone([grandchild], 5)

    inside(work, command=speaking(script), seconds=1.5, together=1)


def test_a_child_that_cannot_be_started_is_no_fault_of_the_file() -> None:
    async def work(box: Sandbox) -> None:
        with pytest.raises(CapacityError, match="cannot start another process"):
            await box.ask(SMALL)

    inside(work, command=("/nowhere/python",))


@pytest.mark.parametrize("script", ["raise SystemExit(1)", "print('hello')", "print('[]')"])
def test_a_child_that_ends_before_it_is_ready_is_no_fault_of_the_file(script: str) -> None:
    async def work(box: Sandbox) -> None:
        with pytest.raises(CapacityError, match="does not start"):
            await box.ask(SMALL)

    inside(work, command=(sys.executable, "-c", script))


def test_an_answer_is_given_although_no_child_can_be_kept_ready(tmp_path: Path) -> None:
    program = tmp_path / "child"
    program.write_text(f"#!{sys.executable}\n{READY}os.unlink({str(program)!r}); {HEARS}print('{{\"length\": 0}}')\n")
    program.chmod(0o755)

    async def work(box: Sandbox) -> None:
        assert await box.ask(SMALL) == b""
        with pytest.raises(CapacityError):
            await box.ask(SMALL)

    inside(work, command=(str(program),))


def test_cancelling_ends_the_child_and_too_many_files_are_refused() -> None:
    before = boxes()

    async def work(box: Sandbox) -> None:
        waiting = [asyncio.create_task(box.ask(SMALL)) for _ in range(WAITING + 2)]
        await asyncio.sleep(0.5)
        assert len(boxes() - before) == 2
        with pytest.raises(CapacityError):
            await box.ask(SMALL)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert boxes() <= before

    inside(work, command=speaking(HANGS), seconds=30)


@pytest.mark.parametrize("turns", range(16))
def test_a_child_is_gone_at_whatever_moment_of_its_life_it_is_cancelled(turns: int) -> None:
    """A child that was forgotten is told by Python when its object goes, and runs on."""

    async def work(box: Sandbox) -> None:
        asking = asyncio.create_task(box.lacking())
        for _ in range(turns):
            await asyncio.sleep(0.02 if turns > 8 else 0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    before = boxes()
    inside(work, command=speaking(HANGS))
    gc.collect()
    assert wait_gone(sorted(boxes() - before))


def test_a_tenant_with_many_files_does_not_keep_another_waiting() -> None:
    order: list[str] = []

    async def work(box: Sandbox) -> None:
        async def ask(tenant: str) -> None:
            await box.ask(SMALL, tenant)
            order.append(tenant)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(ask("many"))
            await asyncio.sleep(0)
            tasks.create_task(ask("one"))

    inside(work, command=speaking(HEARS + "print('{\"length\": 0}')"), together=1)
    assert len(order) == 9 and order.index("one") <= 1


def test_one_child_is_kept_ready_and_each_sees_one_file() -> None:
    before = boxes()

    async def work(box: Sandbox) -> None:
        await box.ask(SMALL)
        [first] = boxes() - before
        await box.ask(SMALL)
        [second] = boxes() - before
        assert first != second
        os.kill(second, 9)
        await asyncio.sleep(0.2)
        assert await box.ask(SMALL), "a spare that died is replaced"

    inside(work)
    assert boxes() <= before


def test_nothing_that_a_child_writes_beyond_its_channel_is_kept() -> None:
    script = HEARS + "sys.stderr.write('noise'); print('{\"length\": 1}'); os.write(1, b'{}')"

    async def work(box: Sandbox) -> None:
        assert await box.ask(SMALL) == b"{", "what follows an answer is not read"

    inside(work, command=speaking("sys.stdout.reconfigure(line_buffering=True); " + script))


def test_what_a_system_does_not_offer_is_told() -> None:
    said = json.dumps({"lacking": {"a network of its own": "Operation not permitted"}})

    async def work(box: Sandbox) -> None:
        assert await box.lacking() == {"a network of its own": "Operation not permitted"}

    inside(work, command=(sys.executable, "-c", f"import time; print({said!r}, flush=True); time.sleep(60)"))


def test_a_child_knows_nothing_of_the_environment() -> None:
    script = "extra = set(os.environ) - {'PYTHONPATH', 'OPENBLAS_NUM_THREADS', 'LC_ALL'}; " + HEARS
    script += "print('{\"length\": %d}' % len(extra)); os.write(1, bytes(len(extra)))"

    async def work(box: Sandbox) -> None:
        assert await box.ask(SMALL) == b""

    os.environ["OMNIMUSE_TEST_SECRET"] = "x"
    try:
        inside(work, command=speaking(script))
    finally:
        del os.environ["OMNIMUSE_TEST_SECRET"]


def test_a_child_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = f"""
import asyncio, os, signal
from omnimuse.media.sandbox import Sandbox
async def main():
    box = Sandbox()
    child = box._start()
    await child.ready(60)
    open({str(note)!r}, "w").write(str(child._process.pid))
    os.kill(child._process.pid, signal.SIGSTOP)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert wait_gone([int(note.read_text())], 5), "stopped, it cannot have noticed the end of its channel"
